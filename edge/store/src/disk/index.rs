//! Where each record is, in memory: 33 to 66 bytes each. Pure.

use super::record::{Name, Place};
use hashbrown::HashTable;

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    place: Place,
}

#[derive(Debug, Default)]
pub struct Index {
    table: HashTable<Entry>,
}

impl Index {
    /// The record is at `place` now; an older one of its name is forgotten.
    pub fn put(&mut self, name: Name, place: Place) {
        match self.table.find_mut(name.hash, |e| e.name == name) {
            Some(e) => e.place = place,
            None => drop(self.table.insert_unique(name.hash, Entry { name, place }, |e| e.name.hash)),
        }
    }

    /// Forgets the oldest variants of a key, so that it has `most` of them.
    pub fn keep_variants(&mut self, hash: u64, most: usize) {
        let mut all = self.variants(hash);
        if all.len() > most {
            all.sort_unstable_by_key(|(_, p)| std::cmp::Reverse((p.segment, p.offset)));
            all.into_iter().skip(most).for_each(|(name, _)| self.remove(name));
        }
    }

    #[must_use]
    pub fn get(&self, name: Name) -> Option<Place> {
        Some(self.table.find(name.hash, |e| e.name == name)?.place)
    }

    /// The record at `old` was copied to `new`. It counts where its name does not stand for another one by now.
    pub fn moved(&mut self, name: Name, old: Place, new: Place) {
        if let Some(e) = self.table.find_mut(name.hash, |e| e.name == name && e.place == old) {
            e.place = new;
        }
    }

    pub fn remove(&mut self, name: Name) {
        if let Ok(e) = self.table.find_entry(name.hash, |e| e.name == name) {
            e.remove();
        }
    }

    /// Forgets the record at `place`, unless its name stands for another one by now.
    pub fn remove_at(&mut self, name: Name, place: Place) {
        if let Ok(e) = self.table.find_entry(name.hash, |e| e.name == name && e.place == place) {
            e.remove();
        }
    }

    /// The variants of a key: more than one where it varies, or where two keys share a hash.
    #[must_use]
    pub fn variants(&self, hash: u64) -> Vec<(Name, Place)> {
        let all = self.table.iter_hash(hash).filter(|e| e.name.hash == hash && !e.name.is_chunk());
        all.map(|e| (e.name, e.place)).collect()
    }

    #[must_use]
    pub fn has(&self, hash: u64) -> bool {
        self.table.find(hash, |e| e.name.hash == hash && !e.name.is_chunk()).is_some()
    }

    pub fn remove_variants(&mut self, hash: u64) {
        while let Ok(e) = self.table.find_entry(hash, |e| e.name.hash == hash && !e.name.is_chunk()) {
            e.remove();
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }
}
