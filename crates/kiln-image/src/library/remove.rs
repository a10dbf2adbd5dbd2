//! Giving names and taking them away; holding images and letting them go.

use super::catalog::Record;
use super::error::LibraryError;
use super::{ImageInfo, ImageLibrary};
use crate::oci::{Digest, Reference};
use crate::store::ImageId;

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// The image, if it is gone with its last name.
    pub deleted: Option<Digest>,
}

impl ImageLibrary {
    /// Gives an image one more name, which another image may have had.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::NotATag`], or [`LibraryError::Image`].
    pub fn tag(&self, key: &str, name: &Reference) -> Result<ImageInfo, LibraryError> {
        if name.digest().is_some() {
            return Err(LibraryError::NotATag(name.to_string()));
        }
        let record = {
            let _lock = self.catalog.lock()?;
            let record = self.find(key)?;
            self.catalog.set_name(name, record.id)?;
            record
        };
        self.describe(&record)
    }

    /// Takes a name away, and with the last one the image; by id, all names of the image, if `force`
    /// says so or there is one at most.
    ///
    /// `in_use` is asked whether someone needs the block image, besides those who pinned it.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::InUse`], [`LibraryError::SeveralNames`], or
    /// [`LibraryError::Image`].
    pub fn remove(
        &self,
        key: &str,
        force: bool,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<Removed, LibraryError> {
        let removed = {
            let _lock = self.catalog.lock()?;
            let record = self.find(key)?;
            let names = self.names_of(record.id)?;
            let name = key.parse::<Reference>().ok().map(|name| name.to_string());
            let going: Vec<String> = match name.filter(|name| names.contains(name)) {
                Some(name) => vec![name],
                None if names.len() > 1 && !force => {
                    return Err(LibraryError::SeveralNames {
                        image: record.id.short(),
                        count: names.len(),
                    });
                }
                None => names.clone(),
            };
            let last = going.len() == names.len();
            if last {
                self.check_unused(&record, in_use)?;
            }
            for name in &going {
                self.catalog.remove_name(name)?;
            }
            if last {
                self.catalog.remove_record(record.id)?;
                self.drop_rootfs(record.rootfs, in_use)?;
            }
            Removed {
                untagged: going,
                deleted: last.then_some(record.id),
            }
        };
        if removed.deleted.is_some() {
            self.sweep_blobs()?;
        }
        Ok(removed)
    }

    pub(super) fn names_of(&self, id: Digest) -> Result<Vec<String>, LibraryError> {
        let names = self.catalog.names()?.into_iter();
        let ours = names.filter(|named| named.image == id);
        Ok(ours.map(|named| named.name).collect())
    }

    fn check_unused(
        &self,
        record: &Record,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<(), LibraryError> {
        let pins = self.catalog.pins()?.into_iter();
        let owners: Vec<String> = pins
            .filter(|(image, _)| *image == record.id)
            .map(|(_, owner)| owner)
            .collect();
        let held = |users| LibraryError::InUse {
            image: record.id.short(),
            users,
        };
        if !owners.is_empty() {
            return Err(held(owners.join(", ")));
        }
        let image = self.store.get(&record.rootfs)?;
        let linked = image.map_or(Ok(false), |image| image.has_other_names())?;
        if linked || in_use(&record.rootfs) {
            return Err(held("a machine".to_owned()));
        }
        Ok(())
    }

    /// Holds an image for an owner (a sandbox, a snapshot): it cannot be removed or pruned until
    /// the owner lets go. Holding twice is holding once.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::PinOwner`], or [`LibraryError::Image`].
    pub fn pin(&self, key: &str, owner: &str) -> Result<(), LibraryError> {
        let _lock = self.catalog.lock()?;
        let record = self.find(key)?;
        self.catalog.pin(record.id, owner)
    }

    /// Lets go of all that the owner holds.
    ///
    /// # Errors
    /// [`LibraryError::PinOwner`] or [`LibraryError::Image`].
    pub fn unpin(&self, owner: &str) -> Result<(), LibraryError> {
        self.retain_pins(&|pin| pin != owner)
    }

    /// Lets go for all owners that live no more, such as sandboxes that were removed while nobody
    /// could tell.
    ///
    /// # Errors
    /// [`LibraryError::Image`].
    pub fn retain_pins(&self, lives: &dyn Fn(&str) -> bool) -> Result<(), LibraryError> {
        let _lock = self.catalog.lock()?;
        for (image, owner) in self.catalog.pins()? {
            if !lives(&owner) {
                self.catalog.unpin(image, &owner)?;
            }
        }
        Ok(())
    }
}
