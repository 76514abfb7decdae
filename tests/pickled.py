"""PyTorch's format, written without PyTorch. The files in tests/parity are written by PyTorch itself."""

import io
import pickle
import zipfile
from typing import Any


class Global:
    """Pickled as the name `module.name`."""

    def __init__(self, module, name):
        self.module, self.name = module, name


PythonPickler: Any = getattr(pickle, "_Pickler")  # noqa: B009


class Pickler(PythonPickler):
    def save(self, obj, save_persistent_id=True) -> Any:
        if isinstance(obj, Global):
            return self.write(f"c{obj.module}\n{obj.name}\n".encode())
        if isinstance(obj, tuple) and obj and obj[0] == "persistent":
            self.save(obj[1])
            return self.write(pickle.BINPERSID)
        if isinstance(obj, tuple) and obj and obj[0] == "call":
            self.save(obj[1])
            self.save(obj[2])
            return self.write(pickle.REDUCE)
        return super().save(obj, save_persistent_id)


def tensor(key, array, storage="FloatStorage", shape=None, strides=None, offset=0, size=None):
    shape = array.shape if shape is None else shape
    strides = tuple(s // array.itemsize for s in array.strides) if strides is None else strides
    held = ("persistent", ("storage", Global("torch", storage), key, "cpu", array.size if size is None else size))
    arguments = (held, offset, shape, strides, False, ("call", Global("collections", "OrderedDict"), ()))
    return ("call", Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def write(path, pickled, storages, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(pickled)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path
