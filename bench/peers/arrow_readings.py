"""The readings of a collector's message, as fast as Python gives them one by one. Runs in the peers' environments."""

from pyarrow import ipc


def readings(message):
    """(ts_ms, gpu_uuid, energy_mj) of each row; a GPU's name stands once in the message."""
    batch = ipc.open_stream(message).read_next_batch()
    gpus = batch["gpu_uuid"]
    names = map(gpus.dictionary.to_pylist().__getitem__, gpus.indices.to_pylist())
    return list(zip(batch["ts_ms"].to_pylist(), names, batch["energy_mj"].to_pylist(), strict=True))
