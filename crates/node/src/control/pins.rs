//! Pins, as commands ask for them.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use shoal_store::{PIN_NAME_LEN_MAX, Pin};

use super::server::{NodeState, OnItem};

impl NodeState {
    /// Keeps paths, and gives the pins they are kept by.
    pub(super) fn pin(
        &self,
        named: &[String],
        name: Option<&str>,
        ttl_seconds: Option<u64>,
        on_item: OnItem<'_>,
    ) -> Result<()> {
        let paths = named.iter().map(|text| self.parse(text)).collect::<Result<Vec<_>>>()?;
        // Between the look and the pin no collection takes them.
        let roots = self.store.temp_roots();
        for path in &paths {
            roots.add(path);
            ensure!(self.store.is_valid(path)?, "{} is not valid here", self.dir.print(path));
        }
        let until = ttl_seconds.map(|ttl| self.store.now().saturating_add(ttl));
        let pins: Vec<Pin> = match name {
            Some(name) => {
                let fits = !name.is_empty() && name.len() <= PIN_NAME_LEN_MAX && !name.contains(char::is_control);
                ensure!(
                    fits,
                    "'{name}' is no name for a pin: 1 to {PIN_NAME_LEN_MAX} bytes without control characters"
                );
                vec![Pin { name: name.to_owned(), paths, until }]
            }
            None => {
                let each =
                    paths.into_iter().map(|path| Pin { name: path.base_name().into(), paths: vec![path], until });
                each.collect()
            }
        };
        for pin in &pins {
            self.store.pin(pin)?;
            on_item(self.pin_item(pin))?;
        }
        Ok(())
    }

    /// Removes pins by their names, or by the paths that name them. All of them have to be there.
    pub(super) fn unpin(&self, named: &[String]) -> Result<()> {
        let known: Vec<String> = self.store.pinned()?.into_iter().map(|pin| pin.name).collect();
        let mut names = Vec::with_capacity(named.len());
        for text in named {
            let as_path = self.parse(text).map(|path| path.base_name().to_owned());
            match std::iter::once(text.clone()).chain(as_path).find(|name| known.contains(name)) {
                Some(name) => names.push(name),
                None => bail!("nothing is pinned as '{text}'; `shoal pin` lists what is"),
            }
        }
        for name in &names {
            self.store.unpin(name)?;
        }
        Ok(())
    }

    pub(super) fn pins(&self, on_item: OnItem<'_>) -> Result<()> {
        self.store.pinned()?.iter().try_for_each(|pin| on_item(self.pin_item(pin)))
    }

    fn pin_item(&self, pin: &Pin) -> Value {
        json!({
            "name": pin.name,
            "paths": pin.paths.iter().map(|path| self.dir.print(path)).collect::<Vec<_>>(),
            "until": pin.until,
            "seconds_left": pin.until.map(|until| until.saturating_sub(self.store.now())),
        })
    }
}
