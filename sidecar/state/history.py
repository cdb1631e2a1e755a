"""Remembers from look to look of one run which link was the interface, and whose it was. Pure."""

from sidecar.state.compare import on
from sidecar.state.model import Desired, History, Observed
from sidecar.state.plan import is_ours


def remember(desired: Desired, observed: Observed) -> History:
    """Return the history after one more look, by the one before, which is in `observed`."""
    history, link = observed.history, observed.link(desired.interface)
    if observed.links is None:
        return history
    former = {history.index, *history.renamed}
    renamed = {
        each.index
        for each in observed.links
        if each.index in former and not each.goes_by(desired.interface)
        # Once the addresses are gone, they are somebody else's business there: perhaps another instance wants them.
        if any(on(each, address, exactly=True) for address in desired.addresses)
    }
    was_foreign = not is_ours(link) if link and link.name else history.was_foreign
    return History(was_foreign, link.index if link else 0, frozenset(renamed - {0}))
