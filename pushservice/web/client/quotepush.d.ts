/** Types of quotepush.js; what each part promises is said there and in docs/clients_javascript.rst. */

/** One update; frozen (its `data` is shared between callbacks: do not change it). */
export interface Quote<Data = unknown> {
  readonly symbol: string;
  /** Count of this symbol's updates within `epoch`, from 1. */
  readonly n: number;
  /** The daemon's receive time, ms since 1970. */
  readonly t: number;
  /** The publisher's payload: a string where it was no JSON. */
  readonly data: Data;
  /** True for the last known quote sent on subscribing. */
  readonly snapshot: boolean;
  /**
   * Updates merged into this one (0 for snapshots and the first update); in a `stream`, those that
   * its reader was too slow for too.
   */
  readonly merged: number;
  /** True for the first quote after a "gap": updates before it may have been lost. */
  readonly gap: boolean;
  /** Names the daemon process that counted `n`. */
  readonly epoch: string;
}

/** "connecting", "authenticating", "open" (served), "waiting" (to reconnect) or "closed". */
export type State = StateEvent["state"];

export type StateEvent =
  | {readonly state: "connecting"}
  | {readonly state: "authenticating"}
  | {readonly state: "open"; readonly conn: string; readonly epoch: string}
  | {
    readonly state: "waiting";
    /** ms until the next attempt; Infinity on a page that was left. */
    readonly delay: number;
    readonly attempt: number;
    readonly code: number;
    readonly reason: string;
  }
  | {readonly state: "closed"; readonly code: number; readonly reason: string};

export interface WelcomeEvent {
  readonly ev: "welcome";
  readonly v: number;
  readonly conn: string;
  readonly epoch: string;
  /** ms between heartbeats. */
  readonly hb: number;
  readonly limits: {readonly symbols: number; readonly message: number};
  readonly auth?: "required" | "done";
}

export interface HeartbeatEvent {
  readonly ev: "heartbeat";
  readonly t: number;
  readonly feed: FeedState;
  /** ms since the last message from the feed; null before the first. */
  readonly age: number | null;
  /** Updates merged into later ones on this connection, in all. */
  readonly merged: number;
}

export interface ByeEvent {
  readonly ev: "bye";
  readonly code: number;
  /** ms to wait before reconnecting, which the client does. */
  readonly retry?: number;
}

export interface AuthenticatedEvent {
  readonly user: string | undefined;
  /** When the token ends, ms since 1970. */
  readonly expires: number | undefined;
  /** By how many seconds quotes come late. */
  readonly delay: number | undefined;
}

export interface DeniedEvent {
  readonly symbol: string;
  readonly code: number;
  readonly msg: string;
}

export type FeedState = "up" | "down";

export interface ServerErrorEvent {
  /** The protocol's error code; 0 for a message that could not be read. */
  readonly code: number;
  readonly msg: string;
  /** There if one symbol was refused. */
  readonly symbol?: string;
  readonly id?: number | string;
}

/** The events by name, each with what its listeners get. */
export interface QuotepushEvents {
  /** The connection's state changed. */
  state: StateEvent;
  welcome: WelcomeEvent;
  heartbeat: HeartbeatEvent;
  bye: ByeEvent;
  /** A token was taken. */
  authenticated: AuthenticatedEvent;
  /** The token ends in so many ms; a token function is called soon. */
  expiring: {readonly in: number};
  /** The token does not allow this symbol, or no longer. */
  denied: DeniedEvent;
  /** The daemon's source became "up" or "down". */
  feed: {readonly state: FeedState};
  /** Updates of this symbol may have been lost before its next quote. */
  gap: {readonly symbol: string; readonly reason: "feed" | "link"};
  /** Quotes stopped to be current. */
  stale: {readonly reason: "link" | "feed" | "quiet"};
  /** Quotes are current again. */
  fresh: Record<string, never>;
  /** These have had no quote for longer than the daemon allows. */
  quiet: {readonly symbols: readonly string[]};
  /** These have quotes again. */
  lively: {readonly symbols: readonly string[]};
  error: ServerErrorEvent;
  /** Every message as text, with "…" for tokens. */
  raw: {readonly direction: "in" | "out"; readonly text: string};
}

/** What a token is needed for. */
export type TokenReason = "connect" | "expiring" | "refused";

/** What is needed of a WebSocket: the browser's, Node's own and that of `ws` have it. */
export interface WebSocketLike {
  readonly readyState: number;
  onopen: ((event: any) => any) | null;
  onmessage: ((event: any) => any) | null;
  onerror: ((event: any) => any) | null;
  onclose: ((event: any) => any) | null;
  send(text: string): void;
  close(): void;
}

/** What is needed of a page or worker. */
export interface PageLike {
  addEventListener(type: string, listener: (event: any) => void): void;
  removeEventListener(type: string, listener: (event: any) => void): void;
}

/** What is needed of an AbortSignal. */
export interface SignalLike {
  throwIfAborted(): void;
  addEventListener(type: "abort", listener: () => void): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

export interface Timers {
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(id: any): void;
  /** ms, never going back. */
  now(): number;
}

export interface QuotepushOptions {
  /** Sent with every subscribe; default "auto". */
  mode?: "auto" | "raw" | undefined;
  /** Sent with every subscribe: least ms between updates of a symbol. */
  interval?: number | undefined;
  /** Sent with every subscribe: whether the last known quote is to come first; default true. */
  snapshot?: boolean | undefined;
  /** Shown where the server asks for one; a function is called for each that is needed. */
  token?: string | ((why: TokenReason) => string | Promise<string>) | undefined;
  /** Default `JSON.parse`; see `parseExact`. */
  parse?: ((text: string) => unknown) | undefined;
  /** Constructor to use instead of the global one. */
  WebSocket?: (new (url: string, protocols: string[]) => WebSocketLike) | undefined;
  /** Whose "online", "pagehide" and the like are heeded; null for nobody's. */
  page?: PageLike | null | undefined;
  /** Receives exceptions of callbacks; default `console.error`. */
  report?: ((error: unknown) => void) | undefined;
  /** First bound of the reconnect delay, ms; default 500. */
  backoff?: number | undefined;
  /** Last bound of the reconnect delay, ms; default 30000. */
  backoffMax?: number | undefined;
  /** ms open after which the backoff starts anew; default 10000. */
  stableAfter?: number | undefined;
  /** ms to wait for the welcome; default 15000. */
  connectTimeout?: number | undefined;
  /** Clock to use instead of the global one. */
  timers?: Timers | undefined;
  /** Instead of `Math.random`. */
  random?: (() => number) | undefined;
}

/** An event of the protocol, as it came. */
export interface ServerEvent {
  readonly ev: string;
  readonly id?: number | string;
  readonly [key: string]: unknown;
}

/**
 * One logical connection: reconnects by itself and keeps the subscriptions. `Data` is what the
 * publisher's payloads are; nothing checks that they are.
 */
export class Quotepush<Data = unknown> {
  /**
   * Connects at once. Throws where that can't be: no address, or none that the WebSocket takes.
   * @param url default: the page's own host
   */
  constructor(url?: string | {readonly href: string}, options?: QuotepushOptions);
  get state(): State;
  /** Whether quotes are current: true from "fresh" to "stale". */
  get fresh(): boolean;
  /** Connects now if the state is "waiting" or "closed"; else does nothing. */
  open(): void;
  /** Closes for good; subscriptions are kept for a later `open()`, streams end. */
  close(): void;
  /** Calls `callback` with each quote of the symbols; returns what unsubscribes it. */
  subscribe(
    symbols: string | Iterable<string>,
    callback: (quote: Quote<Data>) => void,
  ): () => void;
  /**
   * The quotes of the symbols, for `for await`: of each symbol the newest, where the reader is slow.
   * Ends when the client is closed: in silence by `close()`, else with a `QuotepushError`.
   */
  stream(
    symbols: string | Iterable<string>,
    options?: {signal?: SignalLike | undefined},
  ): AsyncGenerator<Quote<Data>, void, void>;
  /** The last known quote of a symbol that is subscribed. */
  last(symbol: string): Quote<Data> | undefined;
  /** Listens to an event; returns what stops it. */
  on<Name extends keyof QuotepushEvents>(
    event: Name,
    listener: (detail: QuotepushEvents[Name]) => void,
  ): () => void;
  /** The round trip in ms. */
  ping(): Promise<number>;
  /** The symbols the server has this connection subscribed to. */
  list(): Promise<string[]>;
  /** Sends any op; the event that answers it. Rejects with a `QuotepushError`. */
  request(op: string, fields?: Record<string, unknown>): Promise<ServerEvent>;
}

/** The daemon's answer was an error, or there was no connection (`code` 0). */
export class QuotepushError extends Error {
  constructor(code: number, message: string, retry?: number);
  readonly name: "QuotepushError";
  readonly code: number;
  /** ms after which the same request may be answered otherwise. */
  readonly retry?: number;
}

/** A number whose source text differs from JavaScript's own, such as `10.50`; see `parseExact`. */
export class ExactNumber {
  constructor(value: number, text: string);
  readonly value: number;
  readonly text: string;
  valueOf(): number;
  toString(): string;
  toJSON(): unknown;
}

/** `JSON.parse` that keeps the source text of numbers as `ExactNumber`, where the engine gives it. */
export function parseExact(text: string): unknown;
