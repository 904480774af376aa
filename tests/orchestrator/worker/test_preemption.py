"""Notices that a machine is about to go."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.worker.preemption import ENDPOINT, FILE, SPOT, Notice, configured, ec2_notice


class Metadata(BaseHTTPRequestHandler):
    """The part of EC2's instance metadata service, version 2, that tells of a spot instance's end."""

    action: dict | None = None
    paths: list[str]

    def do_PUT(self):
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200, "a-token")

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.action:
            self._answer(200, json.dumps(self.server.action))
        else:
            self._answer(404, "not found")

    def _answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.action, server.paths = None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(service):
    return f"http://127.0.0.1:{service.server_address[1]}"


def wait_for(notice, seconds=10):
    end = time.monotonic() + seconds
    while not notice.reason and time.monotonic() < end:
        time.sleep(0.01)
    return notice.reason


def test_no_notice_is_none(service):
    assert ec2_notice(address(service)) == ""
    assert service.paths == ["/latest/meta-data/spot/instance-action"]


def test_a_spot_notice_says_what_and_when(service):
    service.action = {"action": "terminate", "time": "2026-11-21T08:22:00Z"}
    assert ec2_notice(address(service)) == "EC2 will terminate it at 2026-11-21T08:22:00Z"


def test_a_service_that_is_away_is_an_error(service):
    service.shutdown()
    service.server_close()
    with pytest.raises(OSError):
        ec2_notice(address(service))


def test_a_notice_that_comes_later_is_seen(service):
    notice = configured({SPOT: "ec2", ENDPOINT: address(service)}, period=0.02)
    time.sleep(0.2)
    assert notice.reason == ""
    service.action = {"action": "stop", "time": "soon"}
    assert wait_for(notice) == "EC2 will stop it at soon"


def test_a_file_is_a_notice(tmp_path):
    file = tmp_path / "leave"
    notice = configured({FILE: str(file)}, period=0.02)
    time.sleep(0.1)
    assert notice.reason == ""
    file.touch()
    assert str(file) in wait_for(notice)


def test_a_source_that_fails_is_asked_again_and_complained_of_once(caplog):
    answers = iter([OSError("away"), OSError("away"), "now"])

    def source():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_for(Notice([source], period=0.01)) == "now"
    told = [record.message for record in caplog.records if "nobody tells" in record.message]
    assert len(told) == 1 and "away" in told[0]


def test_without_settings_nothing_is_asked():
    before = threading.active_count()
    assert configured({}).reason == ""
    assert threading.active_count() == before


def test_an_unknown_kind_of_notice_is_refused():
    with pytest.raises(ValueError, match="UPS_SPOT_NOTICE must be ec2, got 'gcp'"):
        configured({SPOT: "gcp"})
