//! The dashboards as files: reading what matters of Grafana's format, and what can be said about them without a server.

use super::evaluate;
use anyhow::Context;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The uid that deploy/grafana/provisioning gives the data source.
const DATA_SOURCE: &str = "prometheus";
/// Grafana 11's schema; older ones are migrated when they are opened, which nobody here could watch.
const MIN_SCHEMA: u32 = 39;
/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dashboard {
    /// The file's name without `.json`.
    #[serde(skip)]
    pub(crate) name: String,
    uid: String,
    title: String,
    schema_version: u32,
    tags: Vec<String>,
    links: Vec<Link>,
    pub(crate) panels: Vec<Panel>,
    annotations: List<Annotation>,
    templating: List<Variable>,
}

#[derive(Deserialize)]
struct Link {
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct List<T> {
    list: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Panel {
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    pub(crate) title: String,
    #[serde(default)]
    description: String,
    datasource: Option<DataSource>,
    grid_pos: Place,
    #[serde(default)]
    field_config: FieldConfig,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
}

#[derive(Deserialize)]
struct DataSource {
    uid: String,
}

#[derive(Deserialize, Clone, Copy)]
struct Place {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

#[derive(Deserialize, Default)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Deserialize, Default)]
struct Defaults {
    #[serde(default)]
    unit: String,
    #[serde(default)]
    links: Vec<DataLink>,
}

#[derive(Deserialize)]
struct DataLink {
    url: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    pub(crate) expr: String,
    pub(crate) legend_format: String,
}

#[derive(Deserialize)]
pub(crate) struct Annotation {
    pub(crate) name: String,
    pub(crate) expr: String,
    datasource: DataSource,
}

#[derive(Deserialize)]
pub(crate) struct Variable {
    pub(crate) name: String,
    /// As in `label_values(metric, label)`.
    pub(crate) definition: String,
    datasource: DataSource,
}

impl Dashboard {
    pub(crate) fn annotations(&self) -> &[Annotation] {
        &self.annotations.list
    }

    pub(crate) fn variables(&self) -> &[Variable] {
        &self.templating.list
    }
}

impl Panel {
    /// Grafana's id of the unit that the panel's values have.
    pub(crate) fn unit(&self) -> &str {
        &self.field_config.defaults.unit
    }

    fn is_row(&self) -> bool {
        self.kind == "row"
    }
}

/// Reads every dashboard of a folder, in the order of their names.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Vec<Dashboard>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("{} cannot be read", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    anyhow::ensure!(
        !paths.is_empty(),
        "{} has no dashboards (*.json)",
        folder.display()
    );
    paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path)?;
            let mut dashboard: Dashboard = serde_json::from_str(&text)
                .with_context(|| format!("{} is no dashboard", path.display()))?;
            let stem = path.file_stem().unwrap_or_default();
            dashboard.name = stem.to_string_lossy().into_owned();
            Ok(dashboard)
        })
        .collect()
}

/// What is wrong with the files, whatever the data.
pub(crate) fn problems(dashboards: &[Dashboard]) -> Vec<String> {
    let mut problems = Vec::new();
    let uids: BTreeSet<&str> = dashboards.iter().map(|one| one.uid.as_str()).collect();
    if uids.len() != dashboards.len() {
        problems.push("two dashboards have the same uid".to_owned());
    }
    for dashboard in dashboards {
        let mut say = |text: String| problems.push(format!("{}: {text}", dashboard.name));
        if dashboard.uid != format!("fnctl-{}", dashboard.name) {
            say(format!("uid {} is not fnctl-{{file}}", dashboard.uid));
        }
        if dashboard.title.is_empty() || dashboard.schema_version < MIN_SCHEMA {
            say(format!("no title, or schemaVersion under {MIN_SCHEMA}"));
        }
        let linked = |tag| dashboard.links.iter().any(|link| link.tags.contains(tag));
        if dashboard.tags.is_empty() || !dashboard.tags.iter().all(linked) {
            say("no links to the dashboards with the same tag".to_owned());
        }
        for source in dashboard
            .annotations()
            .iter()
            .map(|one| &one.datasource)
            .chain(dashboard.variables().iter().map(|one| &one.datasource))
        {
            if source.uid != DATA_SOURCE {
                say(format!("a query asks data source '{}'", source.uid));
            }
        }
        let mut ids = BTreeSet::new();
        for (index, panel) in dashboard.panels.iter().enumerate() {
            let mut say = |text: &str| say(format!("'{}': {text}", panel.title));
            if !ids.insert(panel.id) {
                say("its id is another panel's");
            }
            let place = panel.grid_pos;
            if place.w == 0 || place.h == 0 || place.x + place.w > COLUMNS {
                say("it stands outside the grid");
            }
            let others = dashboard.panels.iter().skip(index + 1);
            if others.clone().any(|other| overlap(place, other.grid_pos)) {
                say("it covers another panel");
            }
            if panel.is_row() {
                continue;
            }
            if others.clone().any(|other| other.title == panel.title) {
                say("another panel has its title");
            }
            if panel.description.len() < 40 {
                say("its description does not say what to do when it is bad");
            }
            if panel
                .datasource
                .as_ref()
                .is_none_or(|source| source.uid != DATA_SOURCE)
            {
                say("it does not ask the provisioned data source");
            }
            if evaluate::bounds(panel.unit()).is_none() {
                say("its unit has no bounds in xtask/src/dashboards/evaluate.rs");
            }
            if panel.targets.is_empty() || panel.targets.iter().any(|one| one.expr.is_empty()) {
                say("it has no expression");
            }
            if panel.targets.iter().any(|one| one.legend_format.is_empty()) {
                say("a legend is missing");
            }
            for link in &panel.field_config.defaults.links {
                let to = link.url.strip_prefix("/d/").unwrap_or_default();
                let to = to.split(['?', '/']).next().unwrap_or_default();
                if !uids.contains(to) {
                    say("it links to a dashboard that is not there");
                }
            }
        }
    }
    problems
}

fn overlap(one: Place, other: Place) -> bool {
    one.x < other.x + other.w
        && other.x < one.x + one.w
        && one.y < other.y + other.h
        && other.y < one.y + one.h
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboards_of_the_repository_are_sound() {
        let dashboards = read(&crate::root().join(super::super::DASHBOARDS)).unwrap();
        assert_eq!(problems(&dashboards), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let source = crate::root().join(super::super::DASHBOARDS);
        let good = std::fs::read_to_string(source.join("platform.json")).unwrap();
        for (wrong, right) in [
            (r#""unit": "parsecs""#, r#""unit": "percentunit""#),
            (r#""uid": "elsewhere"}"#, r#""uid": "prometheus"}"#),
            (r#""x": 1,"#, r#""x": 0,"#),
            (r#""schemaVersion": 20"#, r#""schemaVersion": 39"#),
            ("/d/fnctl-nowhere?", "/d/fnctl-function?"),
        ] {
            let bad = good.replacen(right, wrong, 1);
            assert_ne!(bad, good, "{right}");
            std::fs::write(folder.path().join("platform.json"), bad).unwrap();
            let whole = good.replace("fnctl-platform", "fnctl-function");
            std::fs::write(folder.path().join("function.json"), whole).unwrap();
            let found = problems(&read(folder.path()).unwrap());
            assert_eq!(found.len(), 1, "{wrong}: {found:?}");
        }
    }
}
