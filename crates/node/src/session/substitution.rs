//! What upstream caches have and a client wants, fetched while the client is told.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shoal_wire::nix::derivation::BasicDerivation;
use shoal_wire::nix::derived_path::DerivedPath;
use shoal_wire::nix::options::DerivationOptions;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::{Missing, SubstitutableInfo, SubstitutablePathInfo};

use super::Client;
use super::builds::Audience;
use super::fault::Fault;
use crate::build::obtain::Obtainable;
use crate::upstream::{BUILD_BUDGET, CLIENT_BUDGET, Closure, Fetch, Offer, Upstreams};

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// What happens to paths that are being fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent<'a> {
    Started {
        path: &'a StorePath,
        from: &'a str,
        url: &'a str,
    },
    /// Bytes so far, and expected.
    Progress {
        path: &'a StorePath,
        nar: (u64, u64),
        file: (u64, u64),
    },
    Ended {
        path: &'a StorePath,
    },
    /// Paths of this request, and bytes that all of them have.
    Totals {
        done: u64,
        expected: u64,
        running: u64,
        failed: u64,
        file_bytes: u64,
        nar_bytes: u64,
    },
}

impl Client {
    pub(super) fn upstreams(&self) -> &Upstreams {
        &self.services.upstreams
    }

    /// Whether upstreams are to be asked for this client.
    pub(super) fn substitutes(&self) -> bool {
        !self.upstreams().is_empty() && self.options.substitute.unwrap_or(true)
    }

    /// Makes those of `paths` valid that upstreams have.
    pub(super) fn substitute_paths(
        &self,
        paths: &BTreeSet<StorePath>,
        audience: &mut impl Audience,
    ) -> Result<(), Fault> {
        if !self.substitutes() {
            return Ok(());
        }
        let closure = self.upstreams().closure(paths, BUILD_BUDGET)?;
        self.fetch(&closure, audience)
    }

    /// Fetches those of `paths` that are not here, and tells nobody meanwhile. What cannot be fetched stays missing; the
    /// log says why.
    pub(super) fn bring(&self, paths: &BTreeSet<StorePath>) {
        // Clients are told of what other nodes have whatever they say of substitutes.
        if paths.is_empty() || self.upstreams().is_empty() {
            return;
        }
        paths.iter().for_each(|path| self.temp_roots.add(path));
        match self.upstreams().closure(paths, BUILD_BUDGET) {
            Ok(closure) => {
                closure.offers.keys().for_each(|path| self.temp_roots.add(path));
                let fetch = self.upstreams().begin(&closure);
                fetch.iter().flat_map(|fetch| &fetch.flights).for_each(|flight| drop(flight.wait()));
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot look for paths in caches"),
        }
    }

    /// Fetches what spares building `wanted`, and the derivations themselves where they are not here. What cannot be
    /// fetched stays missing.
    pub(super) fn substitute(&self, wanted: &[DerivedPath], audience: &mut impl Audience) -> Result<(), Fault> {
        if !self.substitutes() {
            return Ok(());
        }
        let bases: BTreeSet<StorePath> = wanted.iter().map(|wanted| wanted.base_path().clone()).collect();
        self.substitute_paths(&bases, audience)?;
        let Obtainable { closure, realisations, .. } = self.services.builds.obtainable(self.upstreams(), wanted)?;
        self.fetch(&closure, audience)?;
        for realisation in realisations {
            if self.store().is_valid(&realisation.out_path)? {
                self.store().add_realisation(&realisation)?;
            }
        }
        Ok(())
    }

    /// Fetches inputs of a derivation that are not here, and its outputs where an upstream has all of them.
    pub(super) fn substitute_around(&self, drv: &BasicDerivation, audience: &mut impl Audience) -> Result<(), Fault> {
        if !self.substitutes() {
            return Ok(());
        }
        let mut closure = self.upstreams().closure(&drv.input_srcs, BUILD_BUDGET)?;
        if DerivationOptions::of_basic(self.dir(), drv).is_ok_and(|options| options.allow_substitutes) {
            let known =
                drv.outputs.iter().filter_map(|(id, output)| output.path(self.dir(), &drv.name, id).ok().flatten());
            let mut outputs: BTreeSet<StorePath> = known.collect();
            let valid = self.store().valid_of(&outputs)?;
            outputs.retain(|path| !valid.contains(path));
            let offered = self.upstreams().closure(&outputs, BUILD_BUDGET)?;
            if outputs.iter().all(|path| offered.contains(path)) {
                closure.take(&offered, &outputs);
            }
        }
        self.fetch(&closure, audience)
    }

    fn fetch(&self, closure: &Closure, audience: &mut impl Audience) -> Result<(), Fault> {
        closure.offers.keys().for_each(|path| self.temp_roots.add(path));
        let Some(fetch) = self.upstreams().begin(closure) else { return Ok(()) };
        let _watch = self.hangup.watch(fetch.waker());
        let mut told = Told::new(self.upstreams(), &fetch);
        loop {
            let is_done = fetch.wait(PROGRESS_PERIOD);
            told.tell(&fetch, audience)?;
            audience.flush()?;
            if is_done {
                return Ok(());
            }
            if self.hangup.is_gone() {
                return Err(Fault::Gone);
            }
        }
    }

    /// Those that an upstream has.
    pub(super) fn substitutable(&self, paths: &BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        self.offers(paths).into_iter().map(|offer| offer.info.path.clone()).collect()
    }

    pub(super) fn substitutable_infos(&self, paths: &BTreeSet<StorePath>) -> Vec<SubstitutablePathInfo> {
        let info = |offer: &Offer| SubstitutableInfo {
            deriver: offer.info.deriver.clone(),
            references: offer.info.references.clone(),
            download_size: offer.download_size(),
            nar_size: offer.info.nar_size,
        };
        let offers = self.offers(paths).into_iter();
        offers.map(|offer| SubstitutablePathInfo { path: offer.info.path.clone(), info: info(&offer) }).collect()
    }

    fn offers(&self, paths: &BTreeSet<StorePath>) -> Vec<std::sync::Arc<Offer>> {
        match self.substitutes() {
            true => self.upstreams().offers(paths, CLIENT_BUDGET),
            false => Vec::new(),
        }
    }

    /// What a build of `wanted` would take, with what upstreams have.
    pub(super) fn missing_with_upstreams(&self, wanted: &[DerivedPath]) -> Result<Missing, Fault> {
        let Obtainable { closure, will_build, unknown, .. } =
            self.services.builds.obtainable(self.upstreams(), wanted)?;
        let (download_size, nar_size) = closure.sizes();
        let will_substitute = closure.offers.into_keys().collect();
        Ok(Missing { will_build, will_substitute, unknown, download_size, nar_size })
    }
}

/// How far one path has been told.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Line {
    started: bool,
    ended: bool,
    bytes: (u64, u64),
}

struct Told<'a> {
    upstreams: &'a Upstreams,
    lines: Vec<Line>,
    totals: Option<(u64, u64, u64)>,
}

impl<'a> Told<'a> {
    fn new(upstreams: &'a Upstreams, fetch: &Fetch) -> Self {
        Told { upstreams, lines: vec![Line::default(); fetch.flights.len()], totals: None }
    }

    /// Tells what has changed.
    fn tell(&mut self, fetch: &Fetch, audience: &mut impl Audience) -> Result<(), Fault> {
        let (mut done, mut running, mut failed) = (0, 0, 0);
        for (line, flight) in self.lines.iter_mut().zip(&fetch.flights) {
            let (path, offer) = (&flight.path, &flight.offer);
            let settled = flight.settled();
            let begun = flight.begun.load(Ordering::Acquire);
            if begun && !line.started {
                line.started = true;
                let from = self.upstreams.url(offer);
                let url = self.upstreams.file_url(offer);
                audience.fetching(FetchEvent::Started { path, from: &from, url: &url })?;
            }
            let bytes = (flight.nar_bytes.load(Ordering::Relaxed), flight.file_bytes.load(Ordering::Relaxed));
            if line.started && !line.ended && bytes != line.bytes {
                line.bytes = bytes;
                let nar = (bytes.0, offer.info.nar_size);
                audience.fetching(FetchEvent::Progress { path, nar, file: (bytes.1, offer.download_size()) })?;
            }
            if settled.is_some() && line.started && !line.ended {
                line.ended = true;
                audience.fetching(FetchEvent::Ended { path })?;
            }
            match settled {
                Some(Ok(())) => done += 1,
                Some(Err(_)) => failed += 1,
                None if begun => running += 1,
                None => {}
            }
        }
        if self.totals.replace((done, running, failed)) != Some((done, running, failed)) {
            let sum = |size: fn(&Offer) -> u64| fetch.flights.iter().map(|flight| size(&flight.offer)).sum();
            audience.fetching(FetchEvent::Totals {
                done,
                expected: fetch.flights.len() as u64,
                running,
                failed,
                file_bytes: sum(Offer::download_size),
                nar_bytes: sum(|offer| offer.info.nar_size),
            })?;
        }
        Ok(())
    }
}
