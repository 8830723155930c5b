"""The option --cpu: how many CPU seconds each test file and the slowest tests take."""

import os
from collections import Counter

import pytest

TESTS = 40  # how many tests are listed


def cpu_seconds() -> float:
    """User and system seconds of this process and of the children it has waited for."""
    return sum(os.times()[:4])


class CpuTimes:
    """A plugin that sums CPU seconds over tests, files and the workers of pytest-xdist.

    A test's seconds include those of the fixtures that are made for it first; a file's also the
    import of the file. The total counts every process, from its start.
    """

    def __init__(self):
        self.tests = Counter()
        self.imports = Counter()
        self.workers = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        before = cpu_seconds()
        report = yield
        if isinstance(collector, pytest.Module):
            self.imports[collector.nodeid] += cpu_seconds() - before
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        now = cpu_seconds()
        report.cpu_seconds = now - item.cpu_before
        item.cpu_before = now
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        item.cpu_before = cpu_seconds()

    def pytest_runtest_logreport(self, report):
        self.tests[report.nodeid] += report.cpu_seconds

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["cpu_seconds"] = cpu_seconds()
            session.config.workeroutput["cpu_imports"] = dict(self.imports)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        output = getattr(node, "workeroutput", {})
        self.workers += output.get("cpu_seconds", 0.0)
        self.imports.update(output.get("cpu_imports", {}))

    def pytest_terminal_summary(self, terminalreporter):
        files = Counter(self.imports)
        for test, seconds in self.tests.items():
            files[test.split("::")[0]] += seconds
        terminalreporter.section("CPU seconds")
        for name, seconds in [*files.most_common(), *self.tests.most_common(TESTS)]:
            terminalreporter.write_line(f"{seconds:8.2f} {name}")
        # the children of this process include the workers of pytest-xdist once they have ended
        own = sum(os.times()[:2]) if self.workers else cpu_seconds()
        terminalreporter.write_line(f"{own + self.workers:8.2f} in all")
