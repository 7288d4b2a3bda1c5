//! `fnctl config`.

use crate::app::App;
use crate::args::{ConfigAction, ConfigArgs};
use crate::output::{Table, Tone};
use fnctl_platform::settings::SETTINGS;
use serde_json::json;

pub(crate) fn run(app: &App, args: &ConfigArgs) -> anyhow::Result<()> {
    match &args.action {
        ConfigAction::Check(settings) => {
            super::serve::load(settings, &settings.flags())?;
            app.out.show(&json!({ "ok": true }), |page| {
                page.done("the settings are right")
            })
        }
        ConfigAction::Show(settings) => {
            let loaded = super::serve::load(settings, &settings.flags())?;
            let values: Vec<_> = SETTINGS
                .iter()
                .map(|setting| {
                    json!({
                        "setting": setting.key,
                        "value": (setting.get)(&loaded.config),
                        "from": loaded.origin(setting).to_string(),
                        "variable": setting.variable(),
                    })
                })
                .collect();
            app.out.show(&values, |page| {
                let mut table = Table::new(&["SETTING", "VALUE", "FROM", "VARIABLE"]);
                for setting in SETTINGS {
                    let from = loaded.origin(setting).to_string();
                    let tone = if from == "default" {
                        Tone::Dim
                    } else {
                        Tone::Strong
                    };
                    table.row([
                        (setting.key.to_owned(), Tone::Plain),
                        ((setting.get)(&loaded.config), Tone::Plain),
                        (from, tone),
                        (setting.variable(), Tone::Dim),
                    ]);
                }
                page.table(table);
            })
        }
    }
}
