"""The 200 instruments of the simulated market: symbols, names, opening prices.

Must not know: how prices move, or where quotes go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, zip_longest
from typing import Final

from pushservice.protocol.symbols import symbol_fault

#: The fewest ticks a price may count: below, a single tick would already be too large a move.
SMALLEST_PRICE_TICKS = 100


@dataclass(frozen=True, slots=True)
class Listing:
    """One instrument: what it is called and where its price starts.

    ``symbol``: the exchange's native form, 1 to 64 bytes of UTF-8. ``name``: for people, any text.
    ``price``: in the quoted currency (London: pence), a whole number of ticks. ``decimals``: digits
    after the point in every price, so that one tick is ``10**-decimals``. ``lot``: typical smallest
    trade, in shares or units of the base currency.
    """

    symbol: str
    name: str
    price: Decimal
    decimals: int
    lot: int

    def __post_init__(self) -> None:
        if self.decimals < 0 or self.lot < 1:
            raise ValueError(f"{self.symbol}: decimals below 0 or lot below 1")
        if self.price.scaleb(self.decimals) % 1 or self.price_ticks < SMALLEST_PRICE_TICKS:
            raise ValueError(
                f"{self.symbol}: price {self.price} is not a whole number of ticks,"
                f" {SMALLEST_PRICE_TICKS} or more"
            )

    @property
    def price_ticks(self) -> int:
        """The starting price, counted in ticks of ``10**-decimals``."""
        return int(self.price.scaleb(self.decimals))


# One row an instrument: symbol, price (its digits give the decimals), lot, name. Busiest first.
_SHANGHAI = """\
600519.SH 1680.00 100 贵州茅台
601318.SH 58.30 100 中国平安
600036.SH 42.50 100 招商银行
601899.SH 29.10 100 紫金矿业
688981.SH 118.50 200 中芯国际
688256.SH 1350.00 200 寒武纪
600900.SH 28.10 100 长江电力
601398.SH 7.95 100 工商银行
601288.SH 7.80 100 农业银行
601939.SH 9.40 100 建设银行
601988.SH 5.60 100 中国银行
601857.SH 9.60 100 中国石油
600028.SH 5.75 100 中国石化
601088.SH 41.50 100 中国神华
600030.SH 28.60 100 中信证券
601166.SH 20.80 100 兴业银行
600276.SH 62.40 100 恒瑞医药
600887.SH 28.90 100 伊利股份
601012.SH 20.10 100 隆基绿能
603259.SH 95.20 100 药明康德
600309.SH 64.30 100 万华化学
601668.SH 5.35 100 中国建筑
600050.SH 5.40 100 中国联通
600104.SH 15.80 100 上汽集团
601888.SH 78.20 100 中国中免
600690.SH 26.70 100 海尔智家
600031.SH 21.30 100 三一重工
601138.SH 62.80 100 工业富联
600941.SH 108.20 100 中国移动
601728.SH 6.60 100 中国电信
601628.SH 44.50 100 中国人寿
600009.SH 32.10 100 上海机场
603288.SH 38.20 100 海天味业
600585.SH 23.60 100 海螺水泥
601766.SH 7.60 100 中国中车
600809.SH 196.50 100 山西汾酒
"""

_SHENZHEN = """\
000001.SZ 11.60 100 平安银行
300750.SZ 375.00 100 宁德时代
002594.SZ 97.50 100 比亚迪
000858.SZ 118.60 100 五粮液
300059.SZ 24.80 100 东方财富
000333.SZ 77.80 100 美的集团
000651.SZ 40.30 100 格力电器
002415.SZ 31.20 100 海康威视
002475.SZ 58.90 100 立讯精密
300760.SZ 203.50 100 迈瑞医疗
300308.SZ 498.00 100 中际旭创
300502.SZ 342.00 100 新易盛
300274.SZ 182.00 100 阳光电源
000002.SZ 6.30 100 万科A
000725.SZ 4.05 100 京东方A
000568.SZ 132.40 100 泸州老窖
002714.SZ 50.20 100 牧原股份
002230.SZ 50.80 100 科大讯飞
000063.SZ 42.10 100 中兴通讯
300124.SZ 72.60 100 汇川技术
300015.SZ 12.10 100 爱尔眼科
002304.SZ 68.40 100 洋河股份
000100.SZ 4.30 100 TCL科技
002352.SZ 40.10 100 顺丰控股
002027.SZ 7.55 100 分众传媒
300014.SZ 74.20 100 亿纬锂能
002460.SZ 66.80 100 赣锋锂业
002466.SZ 56.10 100 天齐锂业
000538.SZ 57.30 100 云南白药
000625.SZ 12.30 100 长安汽车
000338.SZ 17.60 100 潍柴动力
002142.SZ 28.30 100 宁波银行
300122.SZ 19.80 100 智飞生物
000776.SZ 22.40 100 广发证券
"""

_HONG_KONG = """\
0700.HK 620.00 100 腾讯控股
9988.HK 152.00 100 阿里巴巴-W
3690.HK 98.50 100 美团-W
1810.HK 40.20 200 小米集团-W
0005.HK 110.30 400 汇丰控股
0941.HK 86.50 500 中国移动
1299.HK 79.80 200 友邦保险
0388.HK 411.00 100 香港交易所
9618.HK 113.00 50 京东集团-SW
1211.HK 96.50 500 比亚迪股份
9999.HK 215.00 100 网易-S
9888.HK 112.00 50 百度集团-SW
1024.HK 66.80 100 快手-W
0981.HK 68.90 500 中芯国际
0883.HK 21.60 1000 中国海洋石油
0857.HK 8.60 2000 中国石油股份
0386.HK 4.40 2000 中国石油化工股份
0939.HK 8.15 1000 建设银行
1398.HK 6.35 1000 工商银行
3988.HK 4.65 1000 中国银行
2318.HK 57.20 500 中国平安
2628.HK 27.40 1000 中国人寿
0016.HK 97.20 500 新鸿基地产
0001.HK 54.50 500 长和
0002.HK 68.80 500 中电控股
0003.HK 7.25 1000 香港中华煤气
0027.HK 39.60 1000 银河娱乐
1928.HK 20.40 400 金沙中国
2020.HK 82.30 200 安踏体育
0992.HK 9.85 2000 联想集团
"""

_UNITED_STATES = """\
AAPL 271.49 100 Apple
NVDA 178.88 100 NVIDIA
TSLA 391.09 100 Tesla
MSFT 472.12 100 Microsoft
AMZN 220.69 100 Amazon.com
GOOGL 299.66 100 Alphabet
META 594.25 100 Meta Platforms
AMD 203.78 100 Advanced Micro Devices
AVGO 340.20 100 Broadcom
PLTR 154.85 100 Palantir Technologies
NFLX 104.31 100 Netflix
INTC 34.50 100 Intel
MU 207.37 100 Micron Technology
BRK.B 504.04 100 Berkshire Hathaway
JPM 298.02 100 JPMorgan Chase
V 327.98 100 Visa
MA 534.55 100 Mastercard
UNH 319.97 100 UnitedHealth Group
XOM 117.08 100 Exxon Mobil
JNJ 203.90 100 Johnson & Johnson
WMT 105.32 100 Walmart
PG 150.73 100 Procter & Gamble
HD 343.32 100 Home Depot
COST 899.01 100 Costco Wholesale
KO 72.95 100 Coca-Cola
PEP 148.18 100 PepsiCo
MCD 309.98 100 McDonald's
DIS 104.28 100 Walt Disney
BA 179.12 100 Boeing
CAT 553.60 100 Caterpillar
GE 288.20 100 GE Aerospace
IBM 297.44 100 IBM
ORCL 198.76 100 Oracle
CRM 227.11 100 Salesforce
ADBE 324.97 100 Adobe
CSCO 76.10 100 Cisco Systems
QCOM 163.30 100 Qualcomm
TXN 157.29 100 Texas Instruments
AMAT 223.90 100 Applied Materials
LLY 1059.70 100 Eli Lilly
MRK 97.80 100 Merck
PFE 25.04 100 Pfizer
ABBV 236.28 100 AbbVie
BAC 51.56 100 Bank of America
WFC 83.76 100 Wells Fargo
GS 774.06 100 Goldman Sachs
MS 159.42 100 Morgan Stanley
NKE 62.74 100 Nike
UBER 83.75 100 Uber Technologies
T 25.87 100 AT&T
"""

_CRYPTO = """\
BTC/USDT 84648.36 1 Bitcoin / Tether
ETH/USDT 2767.50 1 Ethereum / Tether
SOL/USDT 127.40 10 Solana / Tether
XRP/USDT 1.9480 500 XRP / Tether
BNB/USDT 824.60 1 BNB / Tether
DOGE/USDT 0.13890 5000 Dogecoin / Tether
ADA/USDT 0.4036 2000 Cardano / Tether
TRX/USDT 0.2750 2000 TRON / Tether
AVAX/USDT 13.05 50 Avalanche / Tether
LINK/USDT 12.10 50 Chainlink / Tether
DOT/USDT 2.310 200 Polkadot / Tether
LTC/USDT 82.40 10 Litecoin / Tether
BCH/USDT 545.20 1 Bitcoin Cash / Tether
XLM/USDT 0.2310 2000 Stellar / Tether
UNI/USDT 6.120 100 Uniswap / Tether
ATOM/USDT 2.480 200 Cosmos / Tether
NEAR/USDT 1.880 500 NEAR Protocol / Tether
APT/USDT 2.310 200 Aptos / Tether
ARB/USDT 0.2060 2000 Arbitrum / Tether
OP/USDT 0.3050 2000 Optimism / Tether
SUI/USDT 1.3700 500 Sui / Tether
TON/USDT 1.5100 500 Toncoin / Tether
FIL/USDT 1.600 500 Filecoin / Tether
ETC/USDT 13.40 50 Ethereum Classic / Tether
AAVE/USDT 165.20 5 Aave / Tether
SHIB/USDT 0.00000780 1000000 Shiba Inu / Tether
"""

_LONDON = """\
VOD.L 92.50 1000 Vodafone Group
HSBA.L 1058.6 100 HSBC Holdings
SHEL.L 2776.5 100 Shell
BP.L 452.30 500 BP
AZN.L 13510 10 AstraZeneca
BARC.L 401.25 500 Barclays
GSK.L 1790.5 100 GSK
ULVR.L 4530.0 50 Unilever
"""

_TOKYO = """\
7203.T 3080.0 100 トヨタ自動車
9984.T 17200 100 ソフトバンクグループ
6758.T 4430.0 100 ソニーグループ
8306.T 2380.5 100 三菱UFJフィナンシャル・グループ
7974.T 13250 100 任天堂
8035.T 31500 100 東京エレクトロン
9983.T 55800 100 ファーストリテイリング
6861.T 54300 100 キーエンス
6501.T 4790.0 100 日立製作所
9432.T 154.9 100 NTT
"""

_FOREIGN_EXCHANGE = """\
EUR/USD 1.15130 10000 Euro / US Dollar
USD/JPY 156.400 10000 US Dollar / Japanese Yen
GBP/USD 1.30980 10000 Pound Sterling / US Dollar
USD/CNH 7.10600 10000 US Dollar / Offshore Renminbi
AUD/USD 0.64530 10000 Australian Dollar / US Dollar
USD/CHF 0.80850 10000 US Dollar / Swiss Franc
"""


def _read_table(table: str) -> Iterator[Listing]:
    for row in table.splitlines():
        symbol, price, lot, name = row.split(maxsplit=3)
        yield Listing(symbol, name, Decimal(price), len(price.partition(".")[2]), int(lot))


def _read_tables(*tables: str) -> tuple[Listing, ...]:
    # Row by row across the exchanges, so that the busy front of the list has some of each.
    rows = zip_longest(*map(_read_table, tables))
    return tuple(listing for listing in chain.from_iterable(rows) if listing is not None)


#: The default listings: 200 instruments of eight markets taking turns, the busiest first.
SYMBOLS: tuple[Listing, ...] = _read_tables(
    _SHANGHAI,
    _HONG_KONG,
    _UNITED_STATES,
    _CRYPTO,
    _SHENZHEN,
    _FOREIGN_EXCHANGE,
    _TOKYO,
    _LONDON,
)

#: the most listings that a number may ask for
MAX_LISTINGS: Final = 100_000


def parse_listings(text: str) -> tuple[Listing, ...]:
    """The listings that `text` asks for: a number of them, or symbols with commas between them.

    Others than those of SYMBOLS are invented: SIM0201 and so on past their number, and any other
    symbol at a price of 100.00. Raises ValueError for anything else and for invalid symbols.
    """
    if text.isascii() and text.isdigit():
        count = int(text)
        if not 1 <= count <= MAX_LISTINGS:
            raise ValueError(f"{text} is not a number from 1 to {MAX_LISTINGS}")
        more = range(len(SYMBOLS) + 1, count + 1)
        return SYMBOLS[:count] + tuple(_invented(f"SIM{number:04}") for number in more)
    known = {listing.symbol: listing for listing in SYMBOLS}
    symbols = dict.fromkeys(filter(None, (each.strip() for each in text.split(","))))
    for symbol in symbols:
        fault = symbol_fault(symbol)
        if fault is not None:
            raise ValueError(f"{symbol!r}: {fault}")
    if not symbols:
        raise ValueError(f"{text!r} is neither a number nor symbols such as AAPL,600519.SH")
    return tuple(known.get(symbol) or _invented(symbol) for symbol in symbols)


def _invented(symbol: str) -> Listing:
    return Listing(symbol, symbol, Decimal("100.00"), 2, 100)
