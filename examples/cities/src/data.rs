//! The data set: cities and countries as they lie compressed in `data/`.
//!
//! Owns the file formats, which `data/extract.py` describes; what becomes of the rows is `load.rs`'s.

use std::error::Error;
use std::io::Read;
use std::str::Lines;

use flate2::read::GzDecoder;

const CITIES: &[u8] = include_bytes!("../data/cities.gz");
const COUNTRIES: &str = include_str!("../data/countries.tsv");
const COLUMNS: &str = "id_step name countrycode admin1code latitude longitude population timezone";

/// A place of more than about 1,000 inhabitants.
pub struct City<'a> {
    /// GeoNames' number of the place.
    pub id: i64,
    /// Its name, in the spelling GeoNames prefers.
    pub name: &'a str,
    /// ISO 3166 code of its country.
    pub country: &'a str,
    /// Code of its first-level region within the country.
    pub region: &'a str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Inhabitants.
    pub population: i64,
    /// IANA name of its time zone.
    pub timezone: &'a str,
}

/// The cities in their packed form; [`Cities::rows`] reads them out.
pub struct Cities(String);

impl Cities {
    /// Unpacks the data set that is compiled into this program.
    pub fn unpack() -> Result<Cities, Box<dyn Error>> {
        let mut text = String::new();
        GzDecoder::new(CITIES).read_to_string(&mut text)?;
        Ok(Cities(text))
    }

    /// The rows in ascending order of country, region and id.
    pub fn rows(&self) -> Result<impl Iterator<Item = Result<City<'_>, Box<dyn Error>>>, Box<dyn Error>> {
        let mut lines = self.0.lines();
        let head = lines.next().unwrap_or_default();
        let (count, columns) = head.split_once(' ').ok_or("the data set has no head line")?;
        if columns != COLUMNS {
            return Err(format!("the data set has other columns than expected: {columns}").into());
        }
        let count: usize = count.parse()?;
        // One cursor per column, each moved to where its column begins.
        let mut column = move || {
            let own = lines.clone();
            lines.nth(count - 1);
            own
        };
        let mut id = 0;
        let mut step = column();
        let mut text: [Lines<'_>; 3] = [column(), column(), column()];
        let mut degrees = [column(), column()];
        let mut population = column();
        let mut timezone = column();
        let row = move || -> Result<City<'_>, Box<dyn Error>> {
            id += next(&mut step)?.parse::<i64>()?;
            let [name, country, region] = &mut text;
            let [latitude, longitude] = &mut degrees;
            Ok(City {
                id,
                name: next(name)?,
                country: next(country)?,
                region: next(region)?,
                latitude: next(latitude)?.parse()?,
                longitude: next(longitude)?.parse()?,
                population: next(&mut population)?.parse()?,
                timezone: next(&mut timezone)?,
            })
        };
        Ok(std::iter::repeat_with(row).take(count))
    }
}

fn next<'a>(column: &mut Lines<'a>) -> Result<&'a str, Box<dyn Error>> {
    column.next().ok_or_else(|| "the data set ends early".into())
}

/// The countries, each as its six fields: code, name, continent, capital, area in km², inhabitants.
pub fn countries() -> impl Iterator<Item = Vec<&'static str>> {
    COUNTRIES.lines().map(|line| line.split('\t').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_row_stay_together() {
        let cities = Cities::unpack().expect("the packed data");
        let rows: Vec<_> = cities.rows().expect("rows").collect::<Result<_, _>>().expect("every row");
        assert_eq!(rows.len(), 170_391);
        let berlin = rows.iter().find(|city| city.id == 2_950_159).expect("Berlin");
        assert_eq!((berlin.name, berlin.country, berlin.timezone), ("Berlin", "DE", "Europe/Berlin"));
        assert!((berlin.latitude - 52.52).abs() < 0.02 && (berlin.longitude - 13.41).abs() < 0.02);
        assert!(berlin.population > 3_000_000);
    }

    #[test]
    fn every_country_has_its_six_fields() {
        assert!(countries().count() > 200);
        for country in countries() {
            assert_eq!(country.len(), 6, "{country:?}");
        }
    }
}
