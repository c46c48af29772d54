"""The registry's Lua scripts, which Redis runs one at a time, and the names of its keys.

Must not know: connections, or when a script runs. A script may run twice or be refused half way:
whatever it wrote can be found from `nodes`, by way of the nodes' clients.
"""

from __future__ import annotations

from typing import Final

_DROP: Final = """
local function drop(client, symbol)
    local watchers = prefix .. 'symbol:' .. symbol
    redis.call('SREM', watchers, client)
    if redis.call('EXISTS', watchers) == 0 then
        redis.call('HDEL', prefix .. 'last', symbol)
        if redis.call('SISMEMBER', prefix .. 'symbols', symbol) == 1 then
            redis.call('PUBLISH', prefix .. 'demand', '-' .. symbol)
            redis.call('SREM', prefix .. 'symbols', symbol)
        end
    end
    redis.call('SREM', prefix .. 'client:' .. client, symbol)
end
"""

#: ARGV: prefix, node, number of its connection, seconds until it counts as dead, then fields and
#: values of its hash. Returns 1 if the node was alive until now and this is its latest connection,
#: so that no other node can have swept it; -1 if a later connection of it has sent a heartbeat;
#: else 0.
BEAT: Final = """
local prefix, node, session = ARGV[1], ARGV[2], ARGV[3]
local key = prefix .. 'node:' .. node
local before = redis.call('HGET', key, 'session')
if before and tonumber(before) > tonumber(session) then
    return -1
end
-- A full Redis allows EXPIRE, so the node stays alive even if what follows is refused.
redis.call('EXPIRE', key, ARGV[4])
redis.call('SADD', prefix .. 'nodes', node)
redis.call('HSET', key, 'session', session, unpack(ARGV, 5))
redis.call('EXPIRE', key, ARGV[4])
return before == session and 1 or 0
"""

#: ARGV: prefix, node, number of its connection; then for each client: its id, 1 if the added
#: symbols replace all it had, else 0, the numbers of added and of removed symbols, and those.
#: Returns 0, and does nothing, unless the node lives and this is its latest connection: so all that
#: is written will be swept, and an aborted connection writes nothing.
CHANGE: Final = (
    """
local prefix, node, session = ARGV[1], ARGV[2], ARGV[3]
local key = prefix .. 'node:' .. node
if redis.call('HGET', key, 'session') ~= session then
    return 0
end
local clients = key .. ':clients'
"""
    + _DROP
    + """
local function add(client, symbol)
    redis.call('SADD', prefix .. 'client:' .. client, symbol)
    redis.call('SADD', prefix .. 'symbol:' .. symbol, client)
    if redis.call('SISMEMBER', prefix .. 'symbols', symbol) == 0 then
        redis.call('PUBLISH', prefix .. 'demand', '+' .. symbol)
        redis.call('SADD', prefix .. 'symbols', symbol)
    end
end
local at = 4
while at <= #ARGV do
    local client, whole = ARGV[at], ARGV[at + 1] == '1'
    local more, less = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local mine = prefix .. 'client:' .. client
    at = at + 4
    for i = at + more, at + more + less - 1 do
        drop(client, ARGV[i])
    end
    if whole then
        local wanted = {}
        for i = at, at + more - 1 do
            wanted[ARGV[i]] = true
        end
        for _, symbol in ipairs(redis.call('SMEMBERS', mine)) do
            if not wanted[symbol] then
                drop(client, symbol)
            end
        end
    end
    if more > 0 then
        redis.call('SADD', clients, client)
    end
    for i = at, at + more - 1 do
        add(client, ARGV[i])
    end
    if more == 0 and redis.call('EXISTS', mine) == 0 then
        redis.call('SREM', clients, client)
    end
    at = at + more + less
end
return 1
"""
)

#: ARGV: prefix, node, number of its connection, how many payloads are new; then symbols and their
#: latest payloads in turn, the new ones first. Stores those of symbols that are watched; one that
#: is not new, only if there is none yet. Returns 0, and does nothing, in the same cases as CHANGE.
LAST: Final = """
local prefix, new = ARGV[1], tonumber(ARGV[4])
if redis.call('HGET', prefix .. 'node:' .. ARGV[2], 'session') ~= ARGV[3] then
    return 0
end
local last = prefix .. 'last'
for i = 5, #ARGV, 2 do
    if redis.call('SISMEMBER', prefix .. 'symbols', ARGV[i]) == 1 then
        redis.call(i < 5 + 2 * new and 'HSET' or 'HSETNX', last, ARGV[i], ARGV[i + 1])
    end
end
return 1
"""

#: ARGV: prefix. Returns the nodes that have no heartbeat.
DEAD: Final = """
local dead = {}
for _, node in ipairs(redis.call('SMEMBERS', ARGV[1] .. 'nodes')) do
    if redis.call('EXISTS', ARGV[1] .. 'node:' .. node) == 0 then
        dead[#dead + 1] = node
    end
end
return dead
"""

#: ARGV: prefix, node, how many symbols and clients at most, 1 to sweep a node that has a heartbeat,
#: else 0. Removes what the node left. Returns 1 if there may be more, 0 if that was all, -1 if the
#: node lives or nothing was left of it.
SWEEP: Final = (
    """
local prefix, node, budget = ARGV[1], ARGV[2], tonumber(ARGV[3])
local key = prefix .. 'node:' .. node
local clients = key .. ':clients'
"""
    + _DROP
    + """
if ARGV[4] == '1' then
    redis.call('DEL', key)
elseif redis.call('EXISTS', key) == 1 then
    return -1
end
while budget > 0 do
    local client = redis.call('SRANDMEMBER', clients)
    if not client then
        return redis.call('SREM', prefix .. 'nodes', node) - 1
    end
    local mine = prefix .. 'client:' .. client
    for _, symbol in ipairs(redis.call('SRANDMEMBER', mine, budget)) do
        drop(client, symbol)
        budget = budget - 1
    end
    if redis.call('EXISTS', mine) == 0 then
        redis.call('SREM', clients, client)
    end
    budget = budget - 1
end
return 1
"""
)
