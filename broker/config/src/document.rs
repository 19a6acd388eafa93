//! `docs/configuration.md`, rendered from the tables.

use std::fmt::Write;

use crate::{
    BROKER_KEYS, CLIENT_METRICS_KEYS, GROUP_KEYS, TOPIC_KEYS,
    key::{ConfigKey, Support, Update, Valid},
};

/// The whole page as Markdown.
pub fn configuration_page() -> String {
    let mut page = String::from(
        "# Configuration\n\nThis page is generated from the table of keys (`cargo xtask docs`). Keys, types, defaults and bounds are those of \
         Apache Kafka 4.4.\n\nA key under *Refused* guards access, data or durability and does not work yet: any value but its default stops the \
         start. A key under *Without effect* is checked, and named in a warning.\n",
    );
    section(&mut page, "Broker and controller: `server.properties`", BROKER_KEYS);
    section(&mut page, "Topics", TOPIC_KEYS);
    section(&mut page, "Groups", GROUP_KEYS);
    section(&mut page, "Client metrics", CLIENT_METRICS_KEYS);
    page
}

fn section(page: &mut String, title: &str, table: &[ConfigKey]) {
    for (support, heading) in
        [(Support::Served, "Served"), (Support::Refused, "Refused"), (Support::Ignored, "Without effect")]
    {
        let rows: Vec<_> = table.iter().filter(|key| key.support == support).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "\n## {title}: {heading}\n\n| key | type | default | allowed | changes | |\n|---|---|---|---|---|---|\n"
        );
        for key in rows {
            let _ = writeln!(
                page,
                "| `{}` | {:?} | {} | {} | {} | {} |",
                key.name,
                key.kind,
                key.default.filter(|text| !text.is_empty()).map_or_else(String::new, |text| format!("`{text}`")),
                allowed(key.valid),
                match key.update {
                    Update::ReadOnly => "by a restart",
                    Update::PerBroker => "per broker",
                    Update::ClusterWide => "at run time",
                },
                key.documentation
            );
        }
    }
}

fn allowed(valid: Valid) -> String {
    match valid {
        Valid::Any => String::new(),
        Valid::AtLeast(min) => format!("≥ {min}"),
        Valid::Within(min, max) => format!("{min} to {max}"),
        Valid::Fraction { min, max } => format!("{min} to {max}"),
        Valid::OneOf(words) | Valid::OneOfIgnoreCase(words) => words.join(", "),
        Valid::ListOf(words) => format!("list of {}", words.join(", ")),
        Valid::GzipLevel => "1 to 9, or -1".to_owned(),
        Valid::ThrottledReplicas => "`*`, or partition:broker,…".to_owned(),
    }
}
