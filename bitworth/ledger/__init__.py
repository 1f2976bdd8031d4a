"""Cells on disk: a file a finished cell, written to a temporary name and renamed, so that no kill leaves half of one.

    OUT/
      study.json            the study as it was run
      plan.json             its cells, so that what follows needs this folder alone
      cells/KIND/KEY.json   a finished cell (`records`); the key hashes all that could change the result
      packs/*.tar           many such files in one (`packs`)
      failures/KEY.json     why a cell could not be finished; removed when it is
      index/                columns for queries, made from the above and always to be had again (`index`)
      checkpoints/NAME/     what the quantize cells made
      parts/KEY/            results of the parts of a task that is split over a cluster, until it is whole
      progress.json         while it runs: how far it is (`bitworth.progress`)
      lock                  held by the one driver that may write (`locks`)

A result whose checksum does not match is treated as absent (the cell is run again) and reported by `damaged`.
"""

from bitworth.ledger.files import write_atomic, write_json
from bitworth.ledger.folder import PARTS, Ledger
from bitworth.ledger.records import SCHEMA
from bitworth.ledger.values import canonical, key_of, revive

__all__ = ["PARTS", "SCHEMA", "Ledger", "canonical", "key_of", "revive", "write_atomic", "write_json"]
