//! `fnctl config`.

use crate::args::{ConfigAction, ConfigArgs};
use crate::output;
use fnctl_platform::settings::SETTINGS;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    match &args.action {
        ConfigAction::Check(settings) => {
            super::serve::load(settings, &settings.flags())?;
            output::line("the settings are right")
        }
        ConfigAction::Show(settings) => {
            let loaded = super::serve::load(settings, &settings.flags())?;
            let rows = SETTINGS.iter().map(|setting| {
                vec![
                    setting.key.to_owned(),
                    (setting.get)(&loaded.config),
                    loaded.origin(setting).to_string(),
                    setting.variable(),
                ]
            });
            output::table(&["SETTING", "VALUE", "FROM", "VARIABLE"], rows.collect())
        }
    }
}
