# SPDX-License-Identifier: AGPL-3.0-or-later
import logging
import sys
import warnings

from ultralytics.utils import LOGGER

from ultra_mq.core.terminal import ConsoleHandler, announce, quiet, shown_log, track, warn


def test_quiet_silences_libraries_and_keeps_their_warnings(capsys):
    with quiet() as messages:
        print("library chatter")
        print("more of it", file=sys.stderr)
        LOGGER.info("information")
        LOGGER.warning("NMS time limit exceeded")
        warnings.warn("a warning", stacklevel=1)
        with quiet():
            pass
        LOGGER.info("still quiet")
    assert messages == ["NMS time limit exceeded"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_quiet_restores_logging():
    logging.disable(logging.DEBUG)
    try:
        handlers = [handler.level for handler in LOGGER.handlers]
        with quiet():
            pass
        assert logging.root.manager.disable == logging.DEBUG
        assert [handler.level for handler in LOGGER.handlers] == handlers
    finally:
        logging.disable(logging.NOTSET)


def test_progress_is_seen_while_libraries_are_quiet(capsys):
    with quiet():
        assert list(track([1, 2, 3], "Counting", 3)) == [1, 2, 3]
    assert "Counting" in capsys.readouterr().err


def test_a_warning_is_printed_as_it_is(capsys):
    with shown_log():
        warn("layers [a, b] are [bold]odd[/]")
    assert "Warning: layers [a, b] are [bold]odd[/]" in capsys.readouterr().err


def test_a_script_gets_a_logger(caplog, capsys):
    """What is said goes to the log of the package, and its user decides where that appears."""
    with caplog.at_level(logging.INFO, "ultra_mq"):
        announce("Calibrate")
        warn("few images")
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("ultra_mq", "INFO", "Calibrate"), ("ultra_mq", "WARNING", "few images"),
    ]  # fmt: skip
    assert capsys.readouterr().err == ""


def test_our_programs_show_the_log_while_they_run(capsys):
    with shown_log():
        announce("Calibrate [1/2]")
        warn("few images")
    warn("later")
    assert capsys.readouterr().err.splitlines()[:2] == ["Calibrate [1/2]", "Warning: few images"]
    assert not [handler for handler in logging.getLogger("ultra_mq").handlers if isinstance(handler, ConsoleHandler)]


def test_two_silences_at_once_give_the_streams_back(capfd):
    """The second would take the first one's silence for the stream to put back."""
    import os
    import threading
    import time

    from ultra_mq.core.terminal import silent_streams

    def speak(entered):
        with silent_streams():
            entered.set()
            time.sleep(0.05)
            os.write(1, b"lost")

    entered = threading.Event()
    threads = [threading.Thread(target=speak, args=(event,)) for event in (entered, threading.Event())]
    threads[0].start()
    entered.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    os.write(1, b"heard")
    assert capfd.readouterr().out == "heard"
