"""A server over a fake service, for the tests of this folder."""

from collections.abc import Iterator

import httpx
import pytest

from fakes import FakeService, running_server


@pytest.fixture(scope="session")
def shared_service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="session")
def shared_url(shared_service: FakeService) -> Iterator[str]:
    with running_server(shared_service) as url:
        yield url


@pytest.fixture
def service(shared_service: FakeService) -> FakeService:
    """The fake behind `http`, as new."""
    shared_service.__dict__.update(FakeService().__dict__)
    return shared_service


@pytest.fixture
def http(shared_url: str, service: FakeService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_url, timeout=10) as client:
        yield client
