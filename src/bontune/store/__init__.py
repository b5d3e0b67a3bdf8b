"""Every response ever drawn, with its verdicts, kept in one file; and the use of them again (`reuse`)."""

from bontune.store.database import (
    COLUMNS,
    NO_STORE,
    Origin,
    Store,
    file_system,
    is_store,
    open_store,
    policy_hash,
)

__all__ = ["COLUMNS", "NO_STORE", "Origin", "Store", "file_system", "is_store", "open_store", "policy_hash"]
