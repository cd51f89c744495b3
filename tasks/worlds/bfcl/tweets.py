"""The social network of BFCL's multi-turn tasks: tweets by number, their comments, and who follows whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset(
    {"authenticate_twitter", "comment", "follow_user", "mention", "post_tweet", "retweet", "unfollow_user"}
)
_ACCOUNT = {"username": "john", "password": "john123"}


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`tweets` and `comments` by the tweet's number, `retweets` by both, `following` by user, and the account."""
    account = {key: config.get(key, value) for key, value in _ACCOUNT.items()}
    tweets = config.get("tweets", {})
    return {
        "tweets": {str(tweet.get("id", key)): _tweet(tweet, key) for key, tweet in tweets.items()},
        "comments": {str(key): {"comments": _comments(found)} for key, found in config.get("comments", {}).items()},
        "retweets": {
            f"{user}/{number}": {"username": str(user), "id": number}
            for user, found in config.get("retweets", {}).items()
            for number in found
        },
        "following": {user: {"username": user} for user in config.get("following_list", ["alice", "bob"])},
        "twitter": {
            "account": account,
            "session": {"authenticated": bool(config.get("authenticated", False))},
            "counter": {"next": int(config.get("tweet_counter", len(tweets)))},
        },
    }


def _tweet(tweet: Mapping[str, Any], key: str) -> Record:
    return {
        "id": int(tweet.get("id", key)),
        "username": str(tweet.get("username", "")),
        "content": str(tweet.get("content", "")),
        "tags": list(tweet.get("tags", [])),
        "mentions": list(tweet.get("mentions", [])),
    }


def _comments(found: list[Mapping[str, Any]]) -> list[Record]:
    return [
        {"username": str(each.get("username", "")), "content": str(each.get("content", each.get("comment", "")))}
        for each in found
    ]


class TwitterAPI(World):
    """Tweets of all users, and the account of one, whose acts need it to be authenticated."""

    def authenticate_twitter(self, username: str, password: str) -> dict[str, Any]:
        """Log in to the social network.

        Args:
            username: The user's name.
            password: The user's password.
        """
        right = self.__record("account") == {"username": username, "password": password}
        if right:
            self.store.put("twitter", "session", {"authenticated": True})
        return {"authentication_status": right}

    def comment(self, tweet_id: int, comment_content: str) -> dict[str, Any]:
        """Comment on a tweet.

        Args:
            tweet_id: The number of the tweet.
            comment_content: What the comment says.
        """
        user = self.__user()
        self.__tweet(tweet_id)
        found = self.__comments(tweet_id)
        comments = [*found, {"username": user, "content": comment_content}]
        self.store.put("comments", str(tweet_id), {"comments": comments})
        return {"comment_status": "Comment added successfully"}

    def follow_user(self, username_to_follow: str) -> dict[str, Any]:
        """Follow a user.

        Args:
            username_to_follow: The name of the user.
        """
        self.__user()
        if ("following", username_to_follow) in self.store:
            return {"follow_status": False}
        self.store.put("following", username_to_follow, {"username": username_to_follow})
        return {"follow_status": True}

    def get_tweet(self, tweet_id: int) -> dict[str, Any]:
        """Show a tweet.

        Args:
            tweet_id: The number of the tweet.
        """
        return self.__tweet(tweet_id)

    def get_tweet_comments(self, tweet_id: int) -> dict[str, Any]:
        """Show the comments on a tweet.

        Args:
            tweet_id: The number of the tweet.
        """
        self.__tweet(tweet_id)
        return {"comments": self.__comments(tweet_id)}

    def get_user_stats(self, username: str) -> dict[str, Any]:
        """Count a user's tweets, retweets, and the users that this user follows.

        Args:
            username: The user's name.
        """
        own = username == self.__record("account")["username"]
        return {
            "tweet_count": len(self.store.find("tweets", username=username)),
            "following_count": len(self.store.keys("following")) if own else 0,
            "retweet_count": len(self.store.find("retweets", username=username)),
        }

    def get_user_tweets(self, username: str) -> dict[str, Any]:
        """Show all tweets of a user.

        Args:
            username: The user's name.
        """
        return {"user_tweets": self.__several(self.store.find("tweets", username=username))}

    def list_all_following(self) -> dict[str, Any]:
        """List the users that the authenticated user follows."""
        self.__user()
        return {"following_list": self.store.keys("following")}

    def mention(self, tweet_id: int, mentioned_usernames: list[str]) -> dict[str, Any]:
        """Mention users in a tweet that is there already.

        Args:
            tweet_id: The number of the tweet.
            mentioned_usernames: The names of the users.
        """
        self.__user()
        tweet = self.__tweet(tweet_id)
        new = [name for name in dict.fromkeys(mentioned_usernames) if name not in tweet["mentions"]]
        self.store.put("tweets", str(tweet_id), {**tweet, "mentions": [*tweet["mentions"], *new]})
        return {"mention_status": "Users mentioned successfully"}

    def post_tweet(self, content: str, tags: list[str] = [], mentions: list[str] = []) -> dict[str, Any]:  # noqa: B006
        """Post a tweet.

        Args:
            content: What the tweet says.
            tags: Its tags, each with # before it, if the user wants any.
            mentions: The users that it mentions, each with @ before the name, if the user wants any.
        """
        user = self.__user()
        number = self.__record("counter")["next"]  # which a tweet of the start may have: it gives way
        tweet = {"id": number, "username": user, "content": content, "tags": tags, "mentions": mentions}
        self.store.put("tweets", str(number), tweet)
        self.store.put("twitter", "counter", {"next": number + 1})
        return tweet

    def posting_get_login_status(self) -> dict[str, Any]:
        """Tell whether the user is authenticated."""
        return {"login_status": self.__record("session")["authenticated"]}

    def retweet(self, tweet_id: int) -> dict[str, Any]:
        """Retweet a tweet.

        Args:
            tweet_id: The number of the tweet.
        """
        user = self.__user()
        self.__tweet(tweet_id)
        if ("retweets", f"{user}/{tweet_id}") in self.store:
            return {"retweet_status": "Already retweeted"}
        self.store.put("retweets", f"{user}/{tweet_id}", {"username": user, "id": tweet_id})
        return {"retweet_status": "Successfully retweeted"}

    def search_tweets(self, keyword: str) -> dict[str, Any]:
        """Find the tweets that contain a word in their text or tags, in whatever case.

        Args:
            keyword: The word.
        """
        word = keyword.casefold()
        found = self.__several(self.store.keys("tweets"))
        hits = [each for each in found if word in " ".join([each["content"], *each["tags"]]).casefold()]
        return {"matching_tweets": hits}

    def unfollow_user(self, username_to_unfollow: str) -> dict[str, Any]:
        """Stop following a user.

        Args:
            username_to_unfollow: The name of the user.
        """
        self.__user()
        if ("following", username_to_unfollow) not in self.store:
            return {"unfollow_status": False}
        self.store.delete("following", username_to_unfollow)
        return {"unfollow_status": True}

    def __record(self, name: str) -> Record:
        return self.store.get("twitter", name) or {}

    def __user(self) -> str:
        if not self.__record("session").get("authenticated"):
            raise ValueError("nobody is authenticated; call authenticate_twitter first")
        return str(self.__record("account")["username"])

    def __tweet(self, tweet_id: int) -> Record:
        tweet = self.store.get("tweets", str(tweet_id))
        if tweet is None:
            raise ValueError(f"there is no tweet {tweet_id}")
        return tweet

    def __comments(self, tweet_id: int) -> list[Record]:
        return list((self.store.get("comments", str(tweet_id)) or {"comments": []})["comments"])

    def __several(self, numbers: list[str]) -> list[Record]:
        return [self.__tweet(int(number)) for number in sorted(numbers, key=int)]
