"""How much there is of every domain, of the rows that a run has kept."""

from tamis.storage.catalog import query
from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError
from tamis.storage.places import Place, shown


def count_domains(
    workspace: Place, domain: str, text: str | None, by: str | None
) -> tuple[Supply, int]:
    """Rows, bytes of text and tokens by domain, and the rows that have none.

    Args:
        text: column whose UTF-8 bytes are counted, or None.
        by: score or column that counts tokens, or None.

    Raises:
        UserError: if no row has a domain, or tokens are negative.
    """
    name = {
        column: '"' + column.replace('"', '""') + '"' for column in (domain, text, by) if column
    }
    amounts = [
        "count(*)",
        f"sum(strlen(r.{name[text]}))::BIGINT" if text else "NULL",
        _tokens(name[by]) if by else "NULL",
    ]
    _, found = query(
        workspace,
        f"SELECT r.{name[domain]}::VARCHAR AS domain, {', '.join(amounts)} FROM rows r "
        "JOIN (SELECT shard, row FROM decisions WHERE action = 'keep') USING (shard, row) "
        "JOIN scores USING (shard, row) GROUP BY 1 ORDER BY 1",
    )
    for row in found:
        if row[3] is not None and row[3] < 0:
            raise UserError(
                f"{by!r} of domain {row[0]!r} adds up to {row[3]:,}, expected 0 or more"
            )
    without = sum(row[1] for row in found if row[0] is None)
    counted = {
        row[0]: Amount(rows=row[1], bytes=row[2], tokens=row[3])
        for row in found
        if row[0] is not None
    }
    if not counted:
        raise UserError(f"no row has a domain in {domain!r}", where=shown(workspace))
    return Supply(domains=counted), without


def _tokens(name: str) -> str:
    """The sum of a column, in which nulls and nan count nothing."""
    return f"coalesce(round(sum({name}) FILTER (WHERE NOT isnan({name}::DOUBLE))), 0)::BIGINT"
