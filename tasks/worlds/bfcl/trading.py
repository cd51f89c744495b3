"""The trading account of BFCL's multi-turn tasks: stocks, orders, money and a watchlist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset(
    {
        "add_to_watchlist",
        "cancel_order",
        "fund_account",
        "place_order",
        "remove_stock_from_watchlist",
        "trading_login",
        "trading_logout",
        "withdraw_funds",
    }
)
_NONE = "None"  # how the documents write an argument that is left out
_TIME = "10:30 AM"
_STAMP = "2024-11-18 10:30:00"  # of what is done in an episode, in which no time passes
_SYMBOLS = {
    "Apple": "AAPL",
    "Google": "GOOG",
    "Tesla": "TSLA",
    "Microsoft": "MSFT",
    "Nvidia": "NVDA",
    "Alpha Tech": "ALPH",
    "Omega Industries": "OMEG",
    "Quasar Ltd.": "QUAS",
    "Neptune Systems": "NEPT",
    "Synex Solutions": "SYNX",
    "Zeta Corp": "ZETA",
    "Amazon": "AMZN",
}
_SECTORS = {"Technology": ["AAPL", "GOOG", "MSFT", "NVDA"], "Automobile": ["TSLA"]}
_PRICES = {"AAPL": 227.16, "GOOG": 2840.34, "TSLA": 667.92, "MSFT": 310.23, "NVDA": 220.34}
_ACCOUNT = {"account_id": 12345, "balance": 10000.0, "binding_card": 1974202140965533}
_ORDERS = {  # where a row has none, the latest order is one that can still be cancelled
    "12345": {"order_type": "Buy", "symbol": "AAPL", "price": 210.65, "amount": 10, "status": "Completed"},
    "12446": {"order_type": "Sell", "symbol": "GOOG", "price": 2840.34, "amount": 5, "status": "Pending"},
}


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`stocks` and the `watchlist` by symbol, `orders` by number, and the account."""
    orders = config.get("orders", _ORDERS)
    kind = orders.get("order_type", "Buy")  # some rows put it beside the orders
    found = {str(key): _order(key, each, kind) for key, each in orders.items() if isinstance(each, Mapping)}
    stocks = config.get("stocks") or {symbol: {"price": price} for symbol, price in _PRICES.items()}
    account = {**_ACCOUNT, **config.get("account_info", {})}
    return {
        "stocks": {symbol: dict(stock) for symbol, stock in stocks.items()},
        "orders": found,
        "watchlist": {symbol: {"symbol": symbol} for symbol in config.get("watch_list", [])},
        "trading": {
            "account": {**account, "balance": float(account["balance"])},
            "session": {"authenticated": bool(config.get("authenticated", False))},
            "market": {"status": config.get("market_status", "Open")},
            "counter": {"next": int(config.get("order_counter", 12446))},
            "transactions": {"done": [dict(each) for each in config.get("transaction_history", [])]},
        },
    }


def _order(key: str, order: Mapping[str, Any], kind: str) -> Record:
    return {
        "id": int(key) if str(key).isdigit() else key,
        "order_type": order.get("order_type", kind),
        "symbol": order.get("symbol"),
        "price": order.get("price"),
        "amount": order.get("amount", order.get("num_shares")),
        "status": order.get("status", "Open"),
    }


class TradingBot(World):
    """A market whose prices stand still, and one account."""

    def add_to_watchlist(self, stock: str) -> dict[str, Any]:
        """Put a stock on the watchlist.

        Args:
            stock: The symbol of the stock.
        """
        self.__user()
        self.__stock(stock)
        self.store.put("watchlist", stock, {"symbol": stock})
        return {"watchlist": self.store.keys("watchlist")}

    def cancel_order(self, order_id: int) -> dict[str, Any]:
        """Cancel an order that is not completed.

        Args:
            order_id: The number of the order.
        """
        self.__user()
        order = self.__order(order_id)
        if order["status"] in ("Completed", "Cancelled"):
            raise ValueError(f"order {order_id} is {order['status'].lower()} and cannot be cancelled")
        self.store.put("orders", str(order_id), {**order, "status": "Cancelled"})
        return {"order_id": order_id, "status": "Cancelled"}

    def filter_stocks_by_price(self, stocks: list[str], min_price: float, max_price: float) -> dict[str, Any]:
        """Tell which of several stocks cost no less and no more than two prices.

        Args:
            stocks: The symbols of the stocks.
            min_price: The lowest price.
            max_price: The highest price.
        """
        prices = {symbol: (self.store.get("stocks", symbol) or {}).get("price", -1.0) for symbol in stocks}
        found = [symbol for symbol, price in prices.items() if max(min_price, 0.0) <= price <= max_price]
        return {"filtered_stocks": found}

    def fund_account(self, amount: float) -> dict[str, Any]:
        """Put money into the account.

        Args:
            amount: How much.
        """
        return {"status": "Account funded successfully", "new_balance": self.__pay(amount, "deposit")}

    def get_account_info(self) -> dict[str, Any]:
        """Show the account."""
        self.__user()
        return self.__record("account")

    def get_available_stocks(self, sector: str) -> dict[str, Any]:
        """List the symbols of the stocks of a sector.

        Args:
            sector: The sector, such as "Technology".
        """
        found = _SECTORS.get(sector.strip().title(), [])
        return {"stock_list": list(found)}

    def get_current_time(self) -> dict[str, Any]:
        """Tell the time."""
        return {"current_time": _TIME}

    def get_order_details(self, order_id: int) -> dict[str, Any]:
        """Show an order.

        Args:
            order_id: The number of the order.
        """
        self.__user()
        return self.__order(order_id)

    def get_order_history(self) -> dict[str, Any]:
        """List the numbers of all orders."""
        self.__user()
        return {"order_history": sorted(int(key) for key in self.store.keys("orders") if key.isdigit())}

    def get_stock_info(self, symbol: str) -> dict[str, Any]:
        """Show a stock: its price, volume and moving averages.

        Args:
            symbol: The symbol of the stock.
        """
        return self.__stock(symbol)

    def get_symbol_by_name(self, name: str) -> dict[str, Any]:
        """Tell the symbol of a company's stock.

        Args:
            name: The name of the company.
        """
        names = {known.casefold().removesuffix("."): symbol for known, symbol in _SYMBOLS.items()}
        return {"symbol": names.get(name.strip().casefold().removesuffix("."), "Stock not found")}

    def get_transaction_history(self, start_date: str = _NONE, end_date: str = _NONE) -> dict[str, Any]:
        """List what was put into the account and taken out.

        Args:
            start_date: The first day, YYYY-MM-DD (default: from the beginning).
            end_date: The last day, YYYY-MM-DD (default: to the end).
        """
        self.__user()
        first = "" if start_date == _NONE else start_date
        last = "9999" if end_date == _NONE else f"{end_date} 99"
        done = self.__record("transactions")["done"]
        return {"transaction_history": [each for each in done if first <= str(each.get("timestamp", "")) <= last]}

    def get_watchlist(self) -> dict[str, Any]:
        """Show the watchlist."""
        self.__user()
        return {"watchlist": self.store.keys("watchlist")}

    def notify_price_change(self, stocks: list[str], threshold: float) -> dict[str, Any]:
        """Tell which of several stocks have changed in price by at least so many per cent.

        Args:
            stocks: The symbols of the stocks.
            threshold: How many per cent.
        """
        known = {symbol: self.store.get("stocks", symbol) or {} for symbol in stocks}
        changes = {symbol: stock.get("percent_change", 0.0) for symbol, stock in known.items()}
        moved = [symbol for symbol, change in changes.items() if abs(change) >= threshold]
        said = f"Stocks {', '.join(moved)} have changed" if moved else "No significant price changes"
        return {"notification": said}

    def place_order(self, order_type: str, symbol: str, price: float, amount: int) -> dict[str, Any]:
        """Place an order.

        Args:
            order_type: "Buy" or "Sell".
            symbol: The symbol of the stock.
            price: The price of one share.
            amount: How many shares.
        """
        self.__user()
        self.__stock(symbol)
        kind = order_type.title()
        if kind not in ("Buy", "Sell"):
            raise ValueError(f"order_type must be Buy or Sell, not {order_type[:20]!r}")
        if price <= 0 or amount <= 0:
            raise ValueError("price and amount must be above 0")
        number = self.__record("counter")["next"]  # which an order of the start may have: it gives way
        order = {"order_type": kind, "symbol": symbol, "price": float(price), "amount": amount, "status": "Open"}
        self.store.put("orders", str(number), {"id": number, **order})
        self.store.put("trading", "counter", {"next": number + 1})
        return {"order_id": number, "order_type": kind, "status": "Open", "price": float(price), "amount": amount}

    def remove_stock_from_watchlist(self, symbol: str) -> dict[str, Any]:
        """Take a stock off the watchlist.

        Args:
            symbol: The symbol of the stock.
        """
        self.__user()
        if ("watchlist", symbol) not in self.store:
            raise ValueError(f"{symbol[:20]} is not on the watchlist")
        self.store.delete("watchlist", symbol)
        return {"status": f"Stock {symbol} removed from watchlist successfully"}

    def trading_get_login_status(self) -> dict[str, Any]:
        """Tell whether the user is logged in."""
        return {"status": self.__record("session")["authenticated"]}

    def trading_login(self, username: str, password: str) -> dict[str, Any]:
        """Log in to the trading system.

        Args:
            username: The user's name.
            password: The user's password.
        """
        if self.__record("session")["authenticated"]:
            return {"status": "Already logged in"}
        if not username or not password:  # no row says what is right, so any other password is
            return {"status": "Login failed: give a username and a password"}
        self.store.put("trading", "session", {"authenticated": True, "user": username, "password": password})
        return {"status": "Logged in successfully"}

    def trading_logout(self) -> dict[str, Any]:
        """Log out of the trading system."""
        if not self.__record("session")["authenticated"]:
            return {"status": "No user is currently logged in"}
        self.store.put("trading", "session", {"authenticated": False})
        return {"status": "Logged out successfully"}

    def withdraw_funds(self, amount: float) -> dict[str, Any]:
        """Take money out of the account.

        Args:
            amount: How much.
        """
        return {"status": "Withdrawal successful", "new_balance": self.__pay(-amount, "withdrawal")}

    def __record(self, name: str) -> Record:
        return self.store.get("trading", name) or {}

    def __user(self) -> None:
        if not self.__record("session")["authenticated"]:
            raise ValueError("nobody is logged in; call trading_login first")

    def __stock(self, symbol: str) -> Record:
        stock = self.store.get("stocks", symbol)
        if stock is None:
            raise ValueError(f"there is no stock with the symbol '{symbol[:20]}'")
        return stock

    def __order(self, order_id: int) -> Record:
        order = self.store.get("orders", str(order_id))
        if order is None:
            raise ValueError(f"there is no order {order_id}")
        return order

    def __pay(self, change: float, kind: str) -> float:
        """The new balance; `change` has the sign that fits the kind."""
        self.__user()
        account = self.__record("account")
        if (change > 0) != (kind == "deposit") or change == 0:
            raise ValueError("amount must be above 0")
        balance: float = round(account["balance"] + change, 2)
        if balance < 0:
            raise ValueError(f"the balance of the account is only {account['balance']}")
        self.store.put("trading", "account", {**account, "balance": balance})
        done = self.__record("transactions")["done"]
        entry = {"type": kind, "amount": float(abs(change)), "timestamp": _STAMP}
        self.store.put("trading", "transactions", {"done": [*done, entry]})
        return balance
