//! Builds the database: tables, an index, a spatial index and a full-text index, through the VFS.

use std::error::Error;
use std::time::Instant;

use rusqlite::{Connection, params};

use crate::data::{Cities, countries};

const TABLES: &str = "
    CREATE TABLE country(code TEXT PRIMARY KEY, name TEXT, continent TEXT, capital TEXT, area_km2 REAL, population INTEGER)
        WITHOUT ROWID;
    CREATE TABLE city(id INTEGER PRIMARY KEY, name TEXT, country TEXT REFERENCES country, region TEXT,
        latitude REAL, longitude REAL, population INTEGER, timezone TEXT);
    CREATE TABLE visit(city INTEGER REFERENCES city, day TEXT DEFAULT CURRENT_DATE, note TEXT);";

const INDEXES: &str = "
    CREATE INDEX city_by_population ON city(population DESC);
    CREATE INDEX city_by_country ON city(country, population DESC);
    CREATE VIRTUAL TABLE city_place USING rtree(id, south, north, west, east);
    INSERT INTO city_place SELECT id, latitude, latitude, longitude, longitude FROM city;
    CREATE VIRTUAL TABLE city_name USING fts5(name, content='city', content_rowid='id');
    INSERT INTO city_name(city_name) VALUES ('rebuild');";

/// Fills a new database and waits until all of it is in the bucket.
pub fn load(mut db: Connection) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    db.execute_batch(TABLES)?;
    let transaction = db.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO country VALUES (?, ?, ?, ?, ?, ?)")?;
        for country in countries() {
            insert.execute(rusqlite::params_from_iter(country))?;
        }
        let mut insert = transaction.prepare("INSERT INTO city VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
        let cities = Cities::unpack()?;
        for city in cities.rows()? {
            let c = city?;
            insert.execute(params![
                c.id,
                c.name,
                c.country,
                c.region,
                c.latitude,
                c.longitude,
                c.population,
                c.timezone
            ])?;
        }
    }
    transaction.commit()?;
    let transaction = db.transaction()?;
    transaction.execute_batch(INDEXES)?;
    transaction.commit()?;
    let committed = started.elapsed();

    let durable: Option<String> = crate::cost::pragma(&db, "gcs_flush")?;
    let (cities, bytes): (i64, i64) = db.query_row(
        "SELECT (SELECT count(*) FROM city), (SELECT page_count * page_size FROM pragma_page_count, pragma_page_size)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    println!(
        "loaded {cities} cities: {} committed in {} ms, in the bucket after {} ms (durable TXID {})",
        crate::cost::size(bytes as u64),
        committed.as_millis(),
        started.elapsed().as_millis(),
        durable.as_deref().unwrap_or("unknown"),
    );
    db.close().map_err(|(_, error)| error)?;
    Ok(())
}
