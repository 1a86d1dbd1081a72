"""Adds a loyalty tier to an order: a Towpath step in plain Python, without an SDK.

Everything it knows of Towpath is on one page: docs/step-protocol.md.
"""

import json
import sys

CONTRACT = 1


class Permanent(Exception):
    """The message can never be handled."""


def tiers_of(config):
    """Reads `with:`; raises ValueError with a reason for the flow's author."""
    unknown = set(config or {}) - {"tiers"}
    if unknown:
        raise ValueError(f"unknown key `{min(unknown)}`; there is only `tiers`")
    tiers = (config or {}).get("tiers", {"silver": 10_000, "gold": 50_000})
    if not isinstance(tiers, dict):
        raise ValueError("`tiers` must be an object of names and amounts in cents")
    for name, cents in tiers.items():
        if isinstance(cents, bool) or not isinstance(cents, int) or cents < 0:
            raise ValueError(f"`tiers.{name}` must be an amount in cents, a whole number from 0")
    return sorted(tiers.items(), key=lambda tier: tier[1], reverse=True)


def enrich(order, tiers):
    """Returns the order with its tier."""
    if not isinstance(order, dict):
        raise Permanent("the body is not an order: it is no object")
    cents = order.get("total_cents")
    if isinstance(cents, bool) or not isinstance(cents, (int, float)):
        raise Permanent("the order has no `total_cents`")
    tier = next((name for name, least in tiers if cents >= least), "basic")
    return {**order, "tier": tier}


class Agent:
    """The two pipes."""

    def __init__(self, frames_in, frames_out):
        self.frames_in = frames_in
        self.frames_out = frames_out

    def frames(self):
        """Yields the kind and the content of each frame until the agent is gone."""
        for line in self.frames_in:
            yield from json.loads(line).items()

    def say(self, kind, **content):
        """Writes a frame: one line, `body` last, flushed."""
        line = json.dumps({kind: content}, separators=(",", ":"), ensure_ascii=False)
        self.frames_out.write(line + "\n")
        self.frames_out.flush()


def handle(agent, message, tiers):
    """Handles one message: outputs first, then `done`; or `failed`."""
    try:
        order = enrich(message["body"], tiers)
    except Permanent as error:
        agent.say("failed", id=message["id"], fate="permanent", reason=str(error))
    except Exception as error:  # Unknown: it may succeed later, so keep the message.
        agent.say("failed", id=message["id"], fate="retry", reason=repr(error))
    else:
        agent.say("emit", id=message["id"], body=order)
        agent.say("done", id=message["id"])


def main(agent):
    """Serves the agent until it says `drain` or is gone. Returns the exit code."""
    tiers = []
    for kind, content in agent.frames():
        if kind == "hello":
            try:
                tiers = tiers_of(content["config"])
            except ValueError as error:
                agent.say("refused", reason=str(error))
                return 2
            agent.say("ready", contract=CONTRACT, sdk="plain Python")
        elif kind == "message":
            handle(agent, content, tiers)
        elif kind == "drain":
            return 0
        # `cancel` comes when its message is answered already, and kinds that are not known are
        # for steps that know them.
    return 0


if __name__ == "__main__":
    try:
        with open(3, encoding="utf-8") as frames_in, open(4, "w", encoding="utf-8") as frames_out:
            sys.exit(main(Agent(frames_in, frames_out)))
    except BrokenPipeError:
        sys.exit(0)  # The agent is gone.
    except OSError as error:
        sys.exit(f"no agent started this step ({error}); docs/step-protocol.md shows how to try it")
