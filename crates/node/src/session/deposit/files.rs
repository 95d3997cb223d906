//! The small files of a binary cache.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use shoal_wire::nix::base32;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::store_path::{HASH_PART_LEN, StorePath, check_name};
use shoal_wire::nix::worker::ops::RegisterDrvOutput;

use super::{Deposits, Outcome, Refusal};
use crate::door::Grant;
use crate::upstream::decode;

/// Longest log that is kept, in plain text.
const LOG_LEN_MAX: u64 = 1 << 30;

impl Deposits {
    /// `nix-cache-info`: every cache has its own, so it is taken if it is about the same store.
    pub fn put_cache_info(&self, grant: Grant, text: &[u8]) -> Outcome {
        let client = self.uploader(grant)?;
        let text = String::from_utf8_lossy(text);
        let dir = text.lines().find_map(|line| line.strip_prefix("StoreDir:")).map(str::trim);
        let own = client.dir().to_string();
        match dir {
            Some(dir) if dir == own => Ok(()),
            _ => Err(Refusal::bad(format!("this cache is for the store directory {own}"))),
        }
    }

    /// `<hash part>.ls`: made here from the NAR itself, so what a client says is not looked at.
    pub fn put_listing(&self, grant: Grant, hash_part: &str) -> Outcome {
        self.uploader(grant)?;
        match hash_part.len() == HASH_PART_LEN && hash_part.bytes().all(base32::is_digit) {
            true => Ok(()),
            false => Err(Refusal::bad(format!("'{hash_part}' is not how a store path begins"))),
        }
    }

    /// `log/<drv>`. Who may write logs may claim anything of a build, so it takes trust as over ssh.
    pub fn put_log(
        &self,
        grant: Grant,
        drv: &str,
        encoding: Option<&str>,
        body: impl BufRead + Send + 'static,
    ) -> Outcome {
        let client = self.uploader(grant)?;
        if !client.is_trusted() {
            return Err(Refusal::forbidden("adding logs takes the role 'admin'"));
        }
        let drv = StorePath::from_base_name(drv).ok().filter(StorePath::is_derivation);
        let drv = drv.ok_or_else(|| Refusal::bad("logs are called log/<name of a .drv>"))?;
        let log = decode::content(encoding.unwrap_or_default(), body).map_err(|error| Refusal::of_io(&error))?;
        let mut log = log.take(LOG_LEN_MAX + 1);
        let mut writer = client.store().begin_log(&drv)?;
        let copied = std::io::copy(&mut log, &mut writer).map_err(|error| Refusal::of_io(&error))?;
        if copied > LOG_LEN_MAX {
            return Err(Refusal::new(413, format!("a log has at most {LOG_LEN_MAX} bytes")));
        }
        Ok(writer.finish()?)
    }

    /// `realisations/<id>.doi`, of Nix up to 2.34.
    pub fn put_realisation(&self, grant: Grant, id: &str, json: &[u8]) -> Outcome {
        let id: DrvOutput = id.parse().map_err(|error| Refusal::bad(format!("{error}")))?;
        let realisation = Realisation::from_json(json).map_err(|error| Refusal::bad(error.to_string()))?;
        if realisation.id != id {
            return Err(Refusal::bad(format!("'{id}' is not the place of '{}'", realisation.id)));
        }
        self.register(grant, &realisation.out_path.clone(), &RegisterDrvOutput::ByHash(realisation))
    }

    /// `build-trace-v2/<drv>/<output>.doi`, of Nix from 2.35 on.
    pub fn put_build_trace(&self, grant: Grant, drv: &str, output: &str, json: &[u8]) -> Outcome {
        let drv_path = StorePath::from_base_name(drv).map_err(|error| Refusal::bad(error.to_string()))?;
        check_name(output).map_err(|error| Refusal::bad(error.to_string()))?;
        let value = UnkeyedRealisation::from_json(json).map_err(|error| Refusal::bad(error.to_string()))?;
        let out_path = value.out_path.clone();
        let key = BuildTraceKey { drv_path, output: output.to_owned() };
        self.register(grant, &out_path, &RegisterDrvOutput::ByPath(BuildTrace { key, value }))
    }

    fn register(&self, grant: Grant, out_path: &StorePath, output: &RegisterDrvOutput) -> Outcome {
        let client = self.uploader(grant)?;
        client.temp_roots.add(out_path);
        client.bring(&BTreeSet::from([out_path.clone()]));
        if !client.store().is_valid(out_path)? {
            let path = client.dir().print(out_path);
            return Err(Refusal::new(409, format!("'{path}' is not valid here; upload it before its realisation")));
        }
        client.register(output).map_err(|fault| Refusal::of_fault(403, fault))
    }
}
