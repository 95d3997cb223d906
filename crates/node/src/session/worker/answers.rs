//! Requests that are whole once they are read, and whose reply is all there is to say.

use std::collections::BTreeSet;

use shoal_wire::nix::content_address::{CaMethod, CaMethodAlgo};
use shoal_wire::nix::hash::HashAlgo;
use shoal_wire::nix::proto::Done;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::AddTextToStore;
use shoal_wire::nix::worker::{Reply, Request};

use crate::door::Role;
use crate::session::Client;
use crate::session::fault::Fault;
use crate::session::uploads::{NewObject, add_object};

pub fn answer(client: &Client, request: Request) -> Result<Reply, Fault> {
    let store = client.store();
    Ok(match request {
        Request::IsValidPath(r) => Reply::IsValidPath(client.known(&r.path)?.is_some()),
        Request::QueryReferrers(r) => Reply::QueryReferrers(store.referrers(&r.path)?.into_iter().collect()),
        Request::AddTextToStore(r) => Reply::AddTextToStore(add_text(client, r)?),
        Request::AddTempRoot(r) => {
            client.temp_roots.add(&r.path);
            Reply::AddTempRoot(Done)
        }
        Request::AddIndirectRoot(r) => Reply::AddIndirectRoot(client.add_indirect_root(&r.link).map(|()| Done)?),
        Request::AddPermRoot(r) => Reply::AddPermRoot(client.add_perm_root(r)?),
        Request::FindRoots(_) => Reply::FindRoots(client.roots()?),
        Request::QueryDeriver(r) => Reply::QueryDeriver(client.valid_path_info(&r.path)?.deriver),
        Request::QueryDerivationOutputs(r) => {
            Reply::QueryDerivationOutputs(client.output_map(&r.path)?.into_values().flatten().collect())
        }
        Request::QueryDerivationOutputNames(r) => {
            Reply::QueryDerivationOutputNames(client.output_map(&r.path)?.into_keys().collect())
        }
        Request::QueryDerivationOutputMap(r) => Reply::QueryDerivationOutputMap(client.output_map(&r.path)?),
        Request::QueryAllValidPaths(_) => Reply::QueryAllValidPaths(store.paths()?.into_iter().collect()),
        Request::QueryPathInfo(r) => Reply::QueryPathInfo(client.known(&r.path)?.map(Into::into)),
        Request::QueryPathFromHashPart(r) => Reply::QueryPathFromHashPart(client.path_of_hash_part(&r.hash_part)?),
        Request::QueryValidPaths(r) => Reply::QueryValidPaths(client.valid_of(&r.paths)?),
        Request::QueryValidDerivers(r) => Reply::QueryValidDerivers(client.valid_derivers(&r.path)?),
        Request::QueryMissing(r) => Reply::QueryMissing(client.missing(&r.paths)?),
        Request::AddSignatures(r) => {
            client.add_signatures(&r.path, r.signatures.into_iter().collect())?;
            Reply::AddSignatures(Done)
        }
        Request::RegisterDrvOutput(r) => Reply::RegisterDrvOutput(client.register(&r)?),
        Request::QueryRealisation(r) => Reply::QueryRealisation(client.realisation(&r)?),
        other => upstream(client, other)?,
    })
}

/// What the caches behind this node have.
fn upstream(client: &Client, request: Request) -> Result<Reply, Fault> {
    let one = |path: StorePath| BTreeSet::from([path]);
    Ok(match request {
        Request::HasSubstitutes(r) => Reply::HasSubstitutes(!client.substitutable(&one(r.path)).is_empty()),
        Request::QuerySubstitutablePathInfo(r) => {
            Reply::QuerySubstitutablePathInfo(client.substitutable_infos(&one(r.path)).pop().map(|found| found.info))
        }
        Request::QuerySubstitutablePathInfos(r) => {
            Reply::QuerySubstitutablePathInfos(client.substitutable_infos(&r.paths.into_keys().collect()))
        }
        Request::QuerySubstitutablePaths(r) => Reply::QuerySubstitutablePaths(client.substitutable(&r.paths)),
        other => needless(&other)?,
    })
}

/// What needs no look at anything: a collection waits for nobody, and equal contents are kept once already.
fn needless(request: &Request) -> Result<Reply, Fault> {
    Ok(match request {
        Request::SyncWithGc(_) => Reply::SyncWithGc(Done),
        Request::OptimiseStore(_) => Reply::OptimiseStore(Done),
        other => return Err(Fault::fatal(format!("operation {:?} is not for this place", other.op()))),
    })
}

fn add_text(client: &Client, request: AddTextToStore) -> Result<StorePath, Fault> {
    client.require(Role::Push, "add to this store")?;
    let AddTextToStore { name, text, references } = request;
    let method = CaMethodAlgo { method: CaMethod::Text, algo: HashAlgo::Sha256 };
    Ok(add_object(client, NewObject { name, method, references }, &mut &text[..])?.path)
}
