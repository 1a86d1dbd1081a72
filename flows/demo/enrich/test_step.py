"""Plays the agent: runs step.py with pipes at descriptors 3 and 4. `python3 -m unittest` in this folder."""

import json
import os
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


class Played:
    """A step process, and the other ends of its pipes."""

    def __init__(self, config, contract=1):
        step_reads, to_step = os.pipe()
        from_step, step_writes = os.pipe()
        # A shell puts the pipes where the step looks for them.
        command = f'exec "$0" "$1" 3<&{step_reads} 4>&{step_writes}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, sys.executable, os.path.join(HERE, "step.py")],
            pass_fds=(step_reads, step_writes),
            stdin=subprocess.DEVNULL,
        )
        os.close(step_reads)
        os.close(step_writes)
        self.to_step = os.fdopen(to_step, "w", encoding="utf-8")
        self.from_step = os.fdopen(from_step, encoding="utf-8")
        self.send("hello", contract=contract, flow="f", step="s", replica=1, concurrency=16,
                  timeout_ms=0, body_bytes_max=1 << 20, config=config)

    def send(self, kind, **content):
        self.to_step.write(json.dumps({kind: content}) + "\n")
        self.to_step.flush()

    def message(self, number, body):
        self.send("message", id=f"{number:032x}", lineage={}, body=body)

    def frame(self):
        line = self.from_step.readline()
        assert line.endswith("\n"), f"not a whole frame: {line!r}"
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.to_step.close()
        self.from_step.close()


ONE = f"{1:032x}"
TWO = f"{2:032x}"


class StepTest(unittest.TestCase):
    def ready(self, config=None):
        step = Played(config if config is not None else {})
        self.addCleanup(step.__exit__)
        self.assertEqual(step.frame()["ready"]["contract"], 1)
        return step

    def test_an_order_gets_its_tier(self):
        step = self.ready()
        step.message(1, {"id": 7, "total_cents": 50_000, "name": "Zoë"})
        self.assertEqual(step.frame(), {"emit": {
            "id": ONE, "body": {"id": 7, "total_cents": 50_000, "name": "Zoë", "tier": "gold"}}})
        self.assertEqual(step.frame(), {"done": {"id": ONE}})

    def test_tiers_can_be_configured(self):
        step = self.ready({"tiers": {"big": 5}})
        for number, (cents, tier) in enumerate([(4, "basic"), (5, "big")]):
            step.message(number, {"total_cents": cents})
            self.assertEqual(step.frame()["emit"]["body"]["tier"], tier)
            step.frame()

    def test_what_is_no_order_is_permanent_and_the_step_goes_on(self):
        step = self.ready()
        step.message(1, ["no", "order"])
        self.assertEqual(step.frame()["failed"]["fate"], "permanent")
        step.message(2, {"total_cents": 1})
        step.frame()
        self.assertEqual(step.frame(), {"done": {"id": TWO}})

    def test_a_wrong_configuration_is_refused_with_the_key(self):
        for config, key in [({"tier": 1}, "`tier`"), ({"tiers": {"a": "x"}}, "`tiers.a`")]:
            with Played(config) as step:
                self.assertIn(key, step.frame()["refused"]["reason"])
                self.assertEqual(step.process.wait(10), 2)

    def test_frames_that_are_not_known_are_ignored(self):
        step = self.ready()
        step.send("cancel", id=ONE, reason="timeout")
        step.send("unheard_of", x=1)
        step.message(2, {"total_cents": 1, "new": True})
        self.assertEqual(step.frame()["emit"]["id"], TWO)

    def test_it_finishes_and_leaves_when_told_to(self):
        step = self.ready()
        step.message(1, {"total_cents": 1})
        step.send("drain")
        self.assertEqual([next(iter(json.loads(line))) for line in step.from_step], ["emit", "done"])
        self.assertEqual(step.process.wait(10), 0)

    def test_it_leaves_when_the_agent_is_gone(self):
        step = self.ready()
        step.to_step.close()
        self.assertEqual(step.process.wait(10), 0)


if __name__ == "__main__":
    unittest.main()
