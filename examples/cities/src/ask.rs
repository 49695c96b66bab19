//! Opens the database and asks it a few questions, with the cost of each in requests and bytes.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::cost::{Cost, pragma, size};

/// The questions: what they are called, and their SQL.
const QUESTIONS: [(&str, &str); 5] = [
    ("one city by its key", "SELECT name, country, population FROM city WHERE id = 2950159"),
    (
        "the five largest",
        "SELECT city.name, country.name, city.population FROM city JOIN country ON code = country
         ORDER BY city.population DESC LIMIT 5",
    ),
    (
        "nearest to the Matterhorn",
        "SELECT name, country, latitude, longitude FROM city_place JOIN city USING (id)
         WHERE south > 45.85 AND north < 46.1 AND west > 7.5 AND east < 7.82
         ORDER BY (latitude - 45.976) * (latitude - 45.976) + 0.48 * (longitude - 7.658) * (longitude - 7.658) LIMIT 3",
    ),
    (
        "where the Springfields are",
        "SELECT country, count(*), max(population) FROM city_name JOIN city ON city.id = city_name.rowid
         WHERE city_name MATCH 'springfield' GROUP BY country ORDER BY 2 DESC",
    ),
    (
        "largest city of Peru",
        "SELECT name, region, population FROM city WHERE country = 'PE' ORDER BY population DESC LIMIT 1",
    ),
];

/// Asks every question, writes one row, and compares the sum with a full download.
pub fn ask(open: impl FnOnce() -> rusqlite::Result<Connection>, replica: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let db = open()?;
    let mut before = Cost::so_far(&db, started)?;
    let mut bill = vec![("cold open", before)];
    for (name, sql) in QUESTIONS {
        println!("\n{name}");
        print_rows(&db, sql)?;
        let now = Cost::so_far(&db, started)?;
        bill.push((name, now - before));
        before = now;
    }
    db.execute("INSERT INTO visit(city, note) VALUES (2950159, 'seen from a new machine')", [])?;
    pragma(&db, "gcs_flush")?;
    let total = Cost::so_far(&db, started)?;
    bill.push(("one row written and uploaded", total - before));
    bill.push(("all of the above", total));
    if let Some(replica) = replica {
        bill.push(("a full download, for comparison", Cost::of_full_download(replica)?));
    }
    db.close().map_err(|(_, error)| error)?;

    println!("\n{:<34}{:>10}{:>14}{:>10}", "what it cost", "requests", "bytes in", "ms");
    for (name, cost) in bill {
        println!("{name:<34}{:>10}{:>14}{:>10.1}", cost.requests, size(cost.bytes_in), cost.ms);
    }
    println!(
        "\nThe bucket is a directory here, so a request takes next to no time. `make bench` measures behind a network's delay."
    );
    Ok(())
}

fn print_rows(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = db.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        print!("   ");
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => print!(" -"),
                ValueRef::Integer(number) => print!(" {number:<12}"),
                ValueRef::Real(number) => print!(" {number:<12}"),
                ValueRef::Text(text) | ValueRef::Blob(text) => print!(" {:<32}", String::from_utf8_lossy(text)),
            }
        }
        println!();
    }
    Ok(())
}
