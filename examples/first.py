from rengo import Linear, Task


class Pumps(Task):
    def model(self) -> list:
        return [Linear(2, 2)]

    def data(self, device) -> tuple:
        source = {"kind": "csv", "features": ["rms", "peak"], "label": "state"}
        return device.dataset({"source": source, "classes": ["ok", "worn"]}).splits()
