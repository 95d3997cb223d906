//! Realisations of both schemes: the old one travels as JSON text, the new one as fields.

use super::values::write_signatures;
use super::{Codec, ProtoError, Reader, Signatures, Writer};
use crate::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, JSON_LEN_MAX, Realisation, UnkeyedRealisation};
use crate::nix::store_path::check_name;
use std::io::{self, Read, Write};

/// `sha256:<hex>!<output>`.
impl Codec for DrvOutput {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("derivation output id", |text, _| text.parse())
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(&self.to_string())
    }
}

/// A JSON text.
impl Codec for Realisation {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let text = r.bytes("realisation", JSON_LEN_MAX as u64)?;
        Realisation::from_json(&text).map_err(|error| ProtoError::invalid("realisation", error))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(&self.to_json())
    }
}

impl Codec for BuildTraceKey {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let drv_path = r.get()?;
        let output = r.token("output name", |text, _| check_name(text).map(|()| text.to_owned()))?;
        Ok(BuildTraceKey { drv_path, output })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.drv_path)?;
        w.string(&self.output)
    }
}

impl Codec for UnkeyedRealisation {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let out_path = r.get()?;
        let Signatures(signatures) = r.get()?;
        Ok(UnkeyedRealisation { out_path, signatures })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.out_path)?;
        write_signatures(&self.signatures, w)
    }
}

/// 0, or 1 and the realisation.
impl Codec for Option<UnkeyedRealisation> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.u64()? {
            0 => Ok(None),
            1 => Ok(Some(r.get()?)),
            value => Err(ProtoError::Range { what: "optional realisation", value }),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.bool(self.is_some())?;
        match self {
            Some(realisation) => w.put(realisation),
            None => Ok(()),
        }
    }
}

impl Codec for BuildTrace {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        Ok(BuildTrace { key: r.get()?, value: r.get()? })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.key)?;
        w.put(&self.value)
    }
}
