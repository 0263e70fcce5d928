//! Empty: the tests are in `tests/`, and what they compile is in `tests/ui/`.
