def pytest_configure(config):
    config.addinivalue_line("markers", "minutes: starts Ray and verl; about two minutes for each run")
