"""What the fork server imports before it forks."""

from warm import import_all

import_all()
