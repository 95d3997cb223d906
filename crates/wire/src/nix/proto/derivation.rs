//! Derivations without input derivations, as they are sent to be built.
//!
//! Layout: outputs `u64 count x { name, path, hash algorithm, hash }`, input sources, platform, builder,
//! arguments, environment. The name is not part of it: it comes from the path that is sent before.

use super::{ProtoError, Reader, TOKEN_LEN_MAX, Writer};
use crate::nix::derivation::{BasicDerivation, Output};
use crate::nix::store_path::StorePath;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Reads the derivation that lies at `path`.
pub(crate) fn read_derivation<R: Read>(path: &StorePath, r: &mut Reader<R>) -> Result<BasicDerivation, ProtoError> {
    let no_drv = || ProtoError::invalid("derivation path", path);
    let name = path.derivation_name().ok_or_else(no_drv)?.to_owned();
    let mut outputs = BTreeMap::new();
    for _ in 0..r.count()? {
        let output = r.string("output name", TOKEN_LEN_MAX)?;
        let path = r.string("output path", TOKEN_LEN_MAX)?;
        let algo = r.string("hash algorithm", TOKEN_LEN_MAX)?;
        let hash = r.string("hash", TOKEN_LEN_MAX)?;
        let value = Output::from_fields(&r.dialect().store_dir, &name, &output, (&path, &algo, &hash))
            .map_err(|error| ProtoError::invalid("derivation output", error))?;
        outputs.insert(output, value);
    }
    Ok(BasicDerivation {
        name,
        outputs,
        input_srcs: r.get()?,
        system: r.get()?,
        builder: r.get()?,
        args: r.get()?,
        env: r.get()?,
    })
}

pub(crate) fn write_derivation<W: Write>(drv: &BasicDerivation, w: &mut Writer<W>) -> io::Result<()> {
    w.u64(drv.outputs.len() as u64)?;
    for (name, output) in &drv.outputs {
        let fields = output.to_fields(&w.dialect().store_dir, &drv.name, name);
        for text in [name, &fields.path, &fields.hash_algo, &fields.hash] {
            w.string(text)?;
        }
    }
    w.put(&drv.input_srcs)?;
    w.put(&drv.system)?;
    w.put(&drv.builder)?;
    w.put(&drv.args)?;
    w.put(&drv.env)
}
