use std::collections::{BTreeMap, BTreeSet};

use prometheus::proto::MetricType;

use super::*;

/// The documentation of each metric.
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

fn scraped() -> (Metrics, SourceMetrics, SourceMetrics) {
    let metrics = Metrics::new().unwrap();
    let (one, other) = (metrics.source("one").unwrap(), metrics.source("other").unwrap());
    // A snapshot's series are there once it begins.
    one.snapshot("public.orders");
    (metrics, one, other)
}

fn families(metrics: &Metrics) -> BTreeMap<String, (MetricType, usize)> {
    let families = metrics.gather();
    let entry = |family: &prometheus::proto::MetricFamily| {
        (family.name().to_owned(), (family.get_field_type(), family.get_metric().len()))
    };
    families.iter().map(entry).collect()
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let (metrics, ..) = scraped();
    for (name, (kind, _)) in families(&metrics) {
        let Some(bare) = name.strip_prefix("cdc_relay_") else {
            assert!(name.starts_with("process_"), "{name}");
            continue;
        };
        assert_eq!(kind == MetricType::COUNTER, bare.ends_with("_total"), "{name}");
        let units = ["_milliseconds", "_ms", "_kb", "_minutes", "_percent"];
        assert!(!units.iter().any(|unit| bare.contains(unit)), "{name} is not in a base unit");
    }
}

#[test]
fn every_series_is_there_before_anything_happens() {
    let (metrics, ..) = scraped();
    let families = families(&metrics);
    for (name, series) in [("rows_total", 2), ("messages_total", 4), ("slot_status", 10), ("state", 8)] {
        assert_eq!(families[&format!("cdc_relay_{name}")].1, series, "{name}");
    }
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    assert!(text.contains("cdc_relay_dead_letters_total{source=\"other\"} 0"), "{text}");
    assert!(text.contains("cdc_relay_lag_bytes{source=\"one\"} NaN"), "{text}");
}

#[test]
fn sources_are_counted_apart_and_asked_for_once() {
    let (metrics, one, other) = scraped();
    one.emitted(Sink::Rabbit, 10);
    assert_eq!(
        (one.sinks.messages.each_ref().map(IntCounter::get), other.sinks.messages[1].get()),
        ([0, 1], 0)
    );
    assert!(metrics.source("one").is_err(), "a second set of series would split the counts");
}

/// The false alarm it prevents: a source that was removed from the routes file seems to stand still.
#[test]
fn the_series_of_a_source_end_with_it_and_begin_anew() {
    let (metrics, one, _other) = scraped();
    one.emitted(Sink::Kafka, 10);
    metrics.remove("one");
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    assert!(!text.contains("source=\"one\"") && text.contains("source=\"other\""), "{text}");
    assert_eq!(text.matches("# TYPE cdc_relay_rows_total").count(), 1, "{text}");
    let again = metrics.source("one").unwrap();
    assert_eq!(again.sinks.messages[0].get(), 0);
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    // A family stands once, whatever the number of its sources.
    assert_eq!(text.matches("# TYPE cdc_relay_rows_total").count(), 1, "{text}");
    assert!(text.contains("source=\"one\"") && text.contains("source=\"other\""), "{text}");
}

#[test]
fn the_documents_name_every_metric_and_no_other() {
    let (metrics, ..) = scraped();
    let names: BTreeSet<String> = families(&metrics).into_keys().collect();
    let documented = DOCUMENTED.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> =
        documented.filter(|name| name.contains('_')).map(str::to_owned).collect();
    assert_eq!(documented, names);
}

#[test]
fn latencies_are_distinguished_from_half_a_millisecond_to_a_minute() {
    assert!(LATENCIES.is_sorted());
    assert!(LATENCIES.iter().filter(|bound| (0.000_5..=0.01).contains(*bound)).count() >= 8);
    // A quantile is interpolated between two bounds.
    assert!(LATENCIES.windows(2).all(|pair| pair[1] <= pair[0] * 5.0), "{LATENCIES:?}");
    assert!(LATENCIES.contains(&1.0) && LATENCIES.contains(&60.0), "bounds that the alerts compare with");
}
