"""The file with the facts of an AWS account, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput, NotFound
from shuntserve.fleet.ec2_settings import read_ec2_settings
from shuntserve.settings import Settings

WHOLE = """
region: us-east-1
image: ami-1
instance_profile: shuntserve-node
security_groups: [sg-1, sg-2]
subnets: {us-east-1b: subnet-b, us-east-1a: subnet-a}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ec2.yaml"
    path.write_text(text)
    return path


def test_the_file_says_where_machines_may_be(tmp_path: Path) -> None:
    """An offer with a zone is bought there, one without in any zone that has a subnet."""
    account = read_ec2_settings(write(tmp_path, WHOLE))

    assert account.security_groups == ("sg-1", "sg-2")
    assert account.python == "/opt/shuntserve/bin/python"
    assert account.subnets_of(Offer("g6.xlarge", "us-east-1b", "spot", 1.0)) == ("subnet-b",)
    assert account.subnets_of(Offer("g6.xlarge", "", "spot", 1.0)) == ("subnet-a", "subnet-b")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (WHOLE.replace("image: ami-1\n", "").replace("region: us-east-1\n", ""), "lack image, region"),
        (WHOLE + "subnet: subnet-a\n", "'subnet' is not known — did you mean 'subnets'?"),
        (WHOLE.replace("ami-1", "7"), "image: 7 is no text"),
        (WHOLE.replace("[sg-1, sg-2]", "sg-1"), "security_groups is no list"),
        (WHOLE.replace("{us-east-1b: subnet-b, us-east-1a: subnet-a}", "[subnet-a]"), "does not map zones"),
        (WHOLE.replace("subnet-b", "null"), "subnets: None is no text"),
        ("- a\n- b\n", "are not names with values"),
        ("", "are not names with values"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    """Each mistake is InvalidInput with the file, the cause and what to do."""
    path = write(tmp_path, text)

    with pytest.raises(InvalidInput) as caught:
        read_ec2_settings(path)

    assert named in str(caught.value)
    assert str(path) in caught.value.thing
    assert caught.value.next_step


def test_without_the_file_the_error_says_what_belongs_into_it(tmp_path: Path) -> None:
    """Who has never configured EC2 reads which names to write, and where."""
    with pytest.raises(NotFound) as caught:
        read_ec2_settings(tmp_path / "ec2.yaml")

    assert "instance_profile" in caught.value.next_step


def test_the_file_is_found_where_the_environment_says() -> None:
    """SHUNTSERVE_EC2 names it; else it is in the user's configuration directory."""
    named = Settings.from_environment({"SHUNTSERVE_EC2": "/etc/one.yaml", "HOME": "/home/u"})
    usual = Settings.from_environment({"HOME": "/home/u"})
    moved = Settings.from_environment({"HOME": "/home/u", "XDG_CONFIG_HOME": "/config"})

    assert named.ec2_file == Path("/etc/one.yaml")
    assert usual.ec2_file == Path("/home/u/.config/shuntserve/ec2.yaml")
    assert moved.ec2_file == Path("/config/shuntserve/ec2.yaml")
