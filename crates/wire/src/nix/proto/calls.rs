//! Protocols as tables: a line a field, a line a request, and the codecs come from the same line.

/// A struct whose layout is its fields, in order.
macro_rules! codec_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        impl $crate::nix::proto::Codec for $name {
            fn read<R: std::io::Read>(
                r: &mut $crate::nix::proto::Reader<R>,
            ) -> Result<Self, $crate::nix::proto::ProtoError> {
                // There are requests without fields.
                let _ = &r;
                Ok($name { $($field: r.get()?),* })
            }

            fn write<W: std::io::Write>(
                &self,
                w: &mut $crate::nix::proto::Writer<W>,
            ) -> std::io::Result<()> {
                let _ = &w;
                $(w.put(&self.$field)?;)*
                Ok(())
            }
        }
    };
}

/// An enum that travels as its number.
macro_rules! number_enum {
    ($(#[$meta:meta])* $name:ident ($what:literal) { $($(#[$variant_meta:meta])* $variant:ident = $number:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant = $number),* }

        impl $name {
            pub const fn number(self) -> u64 {
                self as u64
            }

            pub const fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some($name::$variant),)*
                    _ => None,
                }
            }
        }

        impl $crate::nix::proto::Codec for $name {
            fn read<R: std::io::Read>(
                r: &mut $crate::nix::proto::Reader<R>,
            ) -> Result<Self, $crate::nix::proto::ProtoError> {
                let value = r.u64()?;
                let out_of_range = $crate::nix::proto::ProtoError::Range { what: $what, value };
                $name::from_number(value).ok_or(out_of_range)
            }

            fn write<W: std::io::Write>(
                &self,
                w: &mut $crate::nix::proto::Writer<W>,
            ) -> std::io::Result<()> {
                w.u64(self.number())
            }
        }
    };
}

/// `Op`, `Request`, `Reply`, and for each line with fields the request's struct. A line with `special` instead
/// of fields names a type that has a codec of its own.
macro_rules! calls {
    ($(
        $(#[$meta:meta])*
        $number:literal $name:ident $fields:tt -> $reply:ty;
    )*) => {
        $($crate::nix::proto::call_struct! { $(#[$meta])* $name $fields })*

        $(
            impl $crate::nix::proto::Call for $name {
                type Reply = $reply;
                const NUMBER: u64 = $number;
            }
        )*

        /// The operations by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op { $($name = $number),* }

        impl Op {
            pub const ALL: &[Op] = &[$(Op::$name),*];

            pub const fn number(self) -> u64 {
                self as u64
            }

            pub const fn from_number(number: u64) -> Option<Op> {
                match number {
                    $($number => Some(Op::$name),)*
                    _ => None,
                }
            }

            pub const fn name(self) -> &'static str {
                match self {
                    $(Op::$name => stringify!($name),)*
                }
            }
        }

        /// A request of any operation; what streams after it is not part of it.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request { $($name($name)),* }

        impl Request {
            pub fn op(&self) -> Op {
                match self {
                    $(Request::$name(_) => Op::$name,)*
                }
            }

            /// The next request; `None` if the peer closed the connection after the last one.
            pub fn read_next<R: std::io::Read>(
                r: &mut $crate::nix::proto::Reader<R>,
            ) -> Result<Option<Request>, $crate::nix::proto::ProtoError> {
                let Some(number) = r.u64_or_end()? else {
                    return Ok(None);
                };
                let unknown = $crate::nix::proto::ProtoError::UnknownOp(number);
                Ok(Some(match Op::from_number(number).ok_or(unknown)? {
                    $(Op::$name => Request::$name(r.get()?),)*
                }))
            }

            /// Writes opcode and request.
            pub fn write<W: std::io::Write>(
                &self,
                w: &mut $crate::nix::proto::Writer<W>,
            ) -> std::io::Result<()> {
                w.u64(self.op().number())?;
                match self {
                    $(Request::$name(request) => w.put(request),)*
                }
            }
        }

        /// A reply to any operation.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Reply { $($name($reply)),* }

        impl Reply {
            /// Reads the reply to `op`.
            pub fn read<R: std::io::Read>(
                op: Op,
                r: &mut $crate::nix::proto::Reader<R>,
            ) -> Result<Reply, $crate::nix::proto::ProtoError> {
                r.begin();
                Ok(match op {
                    $(Op::$name => Reply::$name(r.get()?),)*
                })
            }

            pub fn write<W: std::io::Write>(
                &self,
                w: &mut $crate::nix::proto::Writer<W>,
            ) -> std::io::Result<()> {
                match self {
                    $(Reply::$name(reply) => w.put(reply),)*
                }
            }
        }
    };
}

/// The struct of one line of [`calls`].
macro_rules! call_struct {
    ($name:ident special) => {};
    ($(#[$meta:meta])* $name:ident $fields:tt) => {
        $crate::nix::proto::codec_struct! { $(#[$meta])* $name $fields }
    };
}

pub(crate) use {call_struct, calls, codec_struct, number_enum};
