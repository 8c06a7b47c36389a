from memplat.conformance import BackendConformance


class TestDevshm(BackendConformance):
    backend = "devshm"
