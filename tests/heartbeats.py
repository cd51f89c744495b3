"""`heartbeats.py store|0|1 SECONDS`: torchrun's store, or one of two ranks that look for each other's signs of life.

The environment is what torchrun would set. A rank says when it has seen the other one; all run until they are ended.
"""

import signal
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from verigym.heartbeat import Heartbeat

if sys.argv[1] == "store":
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    print(store.port, flush=True)
    signal.pause()

rank, patience = int(sys.argv[1]), timedelta(seconds=float(sys.argv[2]))
beats = next(dist.rendezvous("env://"))[0]
Heartbeat(rank, [1 - rank], patience).start()
while not beats.add(f"heartbeat/{1 - rank}/beats", 0):
    time.sleep(0.01)
# It looks for the other one between two beats of its own.
seen = beats.add(f"heartbeat/{rank}/beats", 0) + 2
while beats.add(f"heartbeat/{rank}/beats", 0) < seen:
    time.sleep(0.01)
print("seen", flush=True)
signal.pause()
