"""How the notebooks and the package read: cells, lines, prose, sizes of modules and circles of imports.

    python benchmarks/pages.py

For each chapter: exported cells, their median length and how many are longer than 40 lines, exported lines and how many are
wider than 88 columns, and words of prose for each line of exported code. Below it the modules of more than 500 lines, and
modules that import each other (directly or through others).
"""

from pathlib import Path

import grimp
import nbformat
import networkx as nx
import pandas as pd

ROOT = Path(__file__).parents[1]
LONG_CELL, WIDE_LINE, LONG_MODULE = 40, 88, 500


def cells(notebook: Path) -> list[dict[str, int]]:
    """A row a cell: lines and wide lines if it is exported, words if it is prose."""
    rows = []
    for cell in nbformat.read(notebook, 4).cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            rows.append({"words": len(source.split())})
        elif source.startswith("#| export"):
            lines = [line for line in source.split("\n") if not line.startswith("#| ")]
            rows.append({"lines": len(lines), "wide": sum(len(line) > WIDE_LINE for line in lines)})
    return rows


def chapters() -> pd.DataFrame:
    """A row a chapter that exports modules, and one for all of them."""
    found = [
        {"chapter": page.parent.name, **row} for page in sorted((ROOT / "nbs").glob("*/*.ipynb")) for row in cells(page)
    ]
    table = pd.DataFrame(found)
    exporting = table.groupby("chapter")["lines"].transform("count") > 0
    table = table[exporting]
    rows = {name: group for name, group in table.groupby("chapter")} | {"all": table}
    return pd.DataFrame.from_dict({
        name: {"exported cells": group["lines"].count(), "median lines": group["lines"].median(),
               f"over {LONG_CELL}": (group["lines"] > LONG_CELL).sum(), "lines": group["lines"].sum(),
               f"over {WIDE_LINE} columns": group["wide"].sum(),
               "words a line": round(group["words"].sum() / group["lines"].sum(), 2)}
        for name, group in rows.items()}, orient="index")  # fmt: skip


def circles() -> list[list[str]]:
    """Groups of modules that import each other."""
    package = grimp.build_graph("metabonk")
    graph = nx.DiGraph(
        (name, other) for name in package.modules for other in package.find_modules_directly_imported_by(name)
    )
    return sorted(sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1)


def main() -> None:
    """The tables."""
    print(chapters().astype({"exported cells": int, f"over {LONG_CELL}": int, "lines": int}).to_string())
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "metabonk").rglob("*.py")
    }
    long = {name: size for name, size in sorted(sizes.items(), key=lambda entry: -entry[1])
            if size > LONG_MODULE and not name.endswith("_modidx.py")}  # fmt: skip
    print(f"\n{len(long)} of {len(sizes)} modules have more than {LONG_MODULE} lines:")
    print(*(f"{size:6} {name}" for name, size in long.items()), sep="\n")
    found = circles()
    print(f"\n{len(found)} circles of imports", *found, sep="\n")


if __name__ == "__main__":
    main()
