"""Claims: a job belongs to one runner until its lease ends."""

import time
from pathlib import Path

from peftlab.suites.claims import Claims


def test_a_job_belongs_to_one_runner_until_its_lease_ends(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "c.sqlite", lease=600), Claims(tmp_path / "c.sqlite", lease=600)
    assert first.take("run", lambda: False) == 1
    assert second.take("run", lambda: False) is None
    first.lease = 0.5
    first.renew()
    first.lease = 600
    first.renew()
    time.sleep(0.6)  # past the lease that the second renewal extended
    assert second.take("run", lambda: False) is None
    first.lease = 0.01
    first.renew()
    time.sleep(0.1)
    assert second.take("run", lambda: True) is None  # it has ended meanwhile
    assert second.take("run", lambda: False) == 2
    written: list[str] = []
    assert not first.commit("run", lambda: written.append("first"))  # its lease has ended: too late
    assert second.commit("run", lambda: written.append("second"))
    assert written == ["second"]
