//! The names of a type's fields, as serde reads them.
//!
//! A value of the type is read from nothing: whatever is asked for is there and empty, and each
//! struct says on the way which fields it has.

use serde::{
    de::{
        DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
        SeqAccess, VariantAccess, Visitor,
        value::{Error, StrDeserializer},
    },
    forward_to_deserialize_any,
};

/// What is in a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// These and no others.
    Named(Vec<(&'static str, Fields)>),
    /// Names that only the value itself knows.
    Any,
    /// Nothing: it is a word, a number, a list.
    None,
}

/// The fields of a type.
pub(crate) fn fields_of<T: DeserializeOwned>() -> Fields {
    let mut fields = Fields::Any;
    // One that cannot be read from nothing has still told what it got to; the rest stays `Any`.
    let _ = T::deserialize(Nothing(&mut fields));
    fields
}

impl Fields {
    /// Those of a value that is one or the other, or both in one.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Named(mut these), Self::Named(those)) => {
                for (name, fields) in those {
                    if !these.iter().any(|(it, _)| *it == name) {
                        these.push((name, fields));
                    }
                }
                Self::Named(these)
            }
            (these, _) => these,
        }
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        match self {
            Self::Named(fields) => fields.iter().map(|(name, _)| *name).collect(),
            Self::Any | Self::None => Vec::new(),
        }
    }

    /// A field and its own name, however that is written: `MemMiB` is `mem_mib`.
    pub(crate) fn get<'a>(&'a self, name: &'a str) -> Option<(&'a str, &'a Self)> {
        match self {
            Self::Named(fields) => {
                let found = fields.iter().find(|(it, _)| is_same(it, name));
                found.map(|(name, fields)| (*name, fields))
            }
            Self::Any => Some((name, &Self::Any)),
            Self::None => None,
        }
    }
}

/// Whether two names differ in case and underscores at most.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    let plain = |text: &str| -> String {
        let kept = text.chars().filter(|it| *it != '_');
        kept.map(|it| it.to_ascii_lowercase()).collect()
    };
    plain(one) == plain(other)
}

/// Gives whatever is asked for, empty, and notes the fields.
struct Nothing<'a>(&'a mut Fields);

impl Nothing<'_> {
    fn scalar(self) {
        *self.0 = Fields::None;
    }
}

/// Numbers are as one kind of number, words as one kind of word.
macro_rules! as_others {
    ($($this:ident => $other:ident),+ $(,)?) => {$(
        fn $this<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$other(visitor)
        }
    )+};
}

impl<'de> Deserializer<'de> for Nothing<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_bool(false)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_u64(0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_f64(0.0)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_str("")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_seq(Elements(0))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_seq(Elements(len))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.0 = Fields::Any;
        let mut none = Vec::new();
        visitor.visit_map(Entries {
            fields: none.iter_mut(),
            value: None,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let all = names.iter().map(|name| (*name, Fields::Any)).collect();
        *self.0 = Fields::Named(all);
        let Fields::Named(fields) = self.0 else {
            return visitor.visit_unit();
        };
        visitor.visit_map(Entries {
            fields: fields.iter_mut(),
            value: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.scalar();
        visitor.visit_enum(Variant(variants.first().copied().unwrap_or_default()))
    }

    forward_to_deserialize_any! { unit unit_struct ignored_any }

    as_others! {
        deserialize_i8 => deserialize_u64,
        deserialize_i16 => deserialize_u64,
        deserialize_i32 => deserialize_u64,
        deserialize_i64 => deserialize_u64,
        deserialize_u8 => deserialize_u64,
        deserialize_u16 => deserialize_u64,
        deserialize_u32 => deserialize_u64,
        deserialize_f32 => deserialize_f64,
        deserialize_char => deserialize_str,
        deserialize_string => deserialize_str,
        deserialize_identifier => deserialize_str,
        deserialize_bytes => deserialize_str,
        deserialize_byte_buf => deserialize_str,
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }
}

/// The fields of a struct, one after the other.
struct Entries<'a> {
    fields: std::slice::IterMut<'a, (&'static str, Fields)>,
    value: Option<&'a mut Fields>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, fields)) = self.fields.next() else {
            return Ok(None);
        };
        self.value = Some(fields);
        let name: StrDeserializer<'_, Error> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let mut unnamed = Fields::Any;
        seed.deserialize(Nothing(self.value.take().unwrap_or(&mut unnamed)))
    }
}

/// So many elements of a tuple.
struct Elements(usize);

impl<'de> SeqAccess<'de> for Elements {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.0 == 0 {
            return Ok(None);
        }
        self.0 -= 1;
        seed.deserialize(Nothing(&mut Fields::Any)).map(Some)
    }
}

/// The first variant of an enum.
struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Nothing(&mut Fields::Any))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements(len))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        Nothing(&mut Fields::Any).deserialize_struct(self.0, names, visitor)
    }
}
