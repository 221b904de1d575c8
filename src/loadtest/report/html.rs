//! The page of a run: one file that needs nothing else. No script, font, style or picture comes from anywhere, so it
//! works from a disk, in a mail and in ten years. Everything that a scenario, a machine or a stranger said is escaped.

mod page;
mod plot;
mod series;
mod spectrum;
mod tables;

use std::{io, path::Path};

use thiserror::Error;

use super::json::write_whole;
use crate::loadtest::{latency::LatencyError, result::RunResult};

#[derive(Debug, Error)]
pub enum PageError {
    #[error("cannot write the page to {path}: {error}")]
    Write { path: std::path::PathBuf, error: io::Error },
    #[error("cannot draw the page: {0}")]
    Latency(#[from] LatencyError),
    #[error("cannot fill the page: {0}")]
    Template(#[from] askama::Error),
}

/// Written beside its place first, then moved there.
pub fn write(path: &Path, result: &RunResult) -> Result<(), PageError> {
    let page = page(result)?;
    write_whole(path, |to| to.write_all(page.as_bytes()))
        .map_err(|error| PageError::Write { path: path.to_owned(), error })
}

/// The whole page.
pub fn page(result: &RunResult) -> Result<String, PageError> {
    page::page(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::fixture;

    fn all() -> [(&'static str, RunResult); 6] {
        [
            ("outage", fixture::outage()),
            ("short", fixture::short()),
            ("long", fixture::long()),
            ("single", fixture::single()),
            ("nothing", fixture::nothing()),
            ("hostile", fixture::hostile()),
        ]
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        for (name, result) in all() {
            let page = page(&result).unwrap();
            for foreign in ["src=", "href=", "url(", "@import", "<script", "<link", "onload"] {
                assert!(!page.contains(foreign), "{name} has {foreign}");
            }
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("://"), "{name} names a place");
        }
    }

    #[test]
    fn every_element_is_closed_and_every_number_is_one() {
        for (name, result) in all() {
            let page = page(&result).unwrap();
            for element in ["svg", "g", "text", "table", "tr", "td", "th", "section", "figure", "details", "title"] {
                let opened =
                    page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
                let closed = page.matches(&format!("</{element}>")).count();
                assert_eq!(opened, closed, "{name}: {element}");
            }
            assert!(!page.contains("NaN") && !page.contains("inf\"") && !page.contains("inf,"), "{name}");
        }
    }

    #[test]
    fn what_others_wrote_is_only_text() {
        let page = page(&fixture::hostile()).unwrap();
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp; [2J "));
        assert!(!page.contains("<script>") && !page.contains("alert(1)\"") && !page.contains('\u{202e}'));
    }

    #[test]
    fn the_page_has_every_plot_and_says_what_was_proven() {
        let page = page(&fixture::outage()).unwrap();
        for said in [
            "BROKEN: 1 promise of 5",
            "evt_hnnHxIKR_Uy6bhZCusCltw",
            "Rate",
            "Latency over time",
            "Percentiles",
            "Receivers",
            "Failed requests",
            "partition-redis",
            "Near faults",
            "99.99 %",
            "herald loadtest outage-and-recovery --seed 42",
            "AMD EPYC 7B13",
        ] {
            assert!(page.contains(said), "{said}");
        }
    }

    #[test]
    fn a_long_run_makes_no_large_page() {
        let page = page(&fixture::long()).unwrap();
        assert!(page.len() < 600_000, "{}", page.len());
    }

    /// `PAGES=folder cargo test --lib pages_to_look_at` writes them, to be looked at.
    #[test]
    fn pages_to_look_at_can_be_written() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = std::env::var_os("PAGES").map_or_else(|| scratch.path().to_owned(), std::path::PathBuf::from);
        for (name, result) in all() {
            let path = folder.join(format!("{name}.html"));
            write(&path, &result).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().ends_with("</html>\n"));
        }
    }
}
