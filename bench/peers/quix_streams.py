"""Joules per GPU and window with Quix Streams, from one row per message or from the collectors' messages."""

import sys
import tempfile

from arrow_readings import readings
from progress import Progress
from quixstreams import Application, State

WINDOW_MS = 10_000
GRACE_MS = 15_000


def main(brokers: str, mode: str, topic: str, output: str, total: int) -> None:
    app = Application(
        broker_address=brokers,
        consumer_group=output,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=tempfile.mkdtemp(),
        loglevel="WARNING",
    )
    progress = Progress(total)
    results = app.topic(output, value_serializer="json")
    if mode == "rows":
        sdf = app.dataframe(app.topic(topic, value_deserializer="json", key_deserializer="str"))

        def increment(row: dict, state: State) -> int:
            progress.add(1)
            before = state.get("energy_mj")
            state.set("energy_mj", row["energy_mj"])
            return 0 if before is None else row["energy_mj"] - before

        sdf = sdf.apply(increment, stateful=True)
        sdf = sdf.tumbling_window(WINDOW_MS, grace_ms=GRACE_MS).sum().final()
        sdf = sdf.apply(
            lambda window, key, *_: {"gpu": key, "start_ms": window["start"], "energy_mj": window["value"]},
            metadata=True,
        )
    else:
        sdf = app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="str"))

        def closed(message: bytes, state: State) -> list:
            # state belongs to the message's key, the pool: windowing by GPU would send every row through another topic
            rows = readings(message)
            progress.add(len(rows))
            last, windows = state.get("last", {}), state.get("windows", {})
            newest = state.get("newest", 0)
            for ts_ms, gpu, energy_mj in rows:
                newest = max(newest, ts_ms)
                start = str(ts_ms // WINDOW_MS * WINDOW_MS)
                window = windows.setdefault(start, {})
                window[gpu] = window.get(gpu, 0) + energy_mj - last.get(gpu, energy_mj)
                last[gpu] = energy_mj
            over = [start for start in windows if int(start) + WINDOW_MS + GRACE_MS <= newest]
            found = [
                {"gpu": gpu, "start_ms": int(start), "energy_mj": mj}
                for start in over
                for gpu, mj in windows.pop(start).items()
            ]
            state.set("last", last)
            state.set("windows", windows)
            state.set("newest", newest)
            return found

        sdf = sdf.apply(closed, stateful=True, expand=True)
    sdf.to_topic(results)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
