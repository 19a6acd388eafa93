//! Access control entries, SCRAM credentials and delegation tokens, kept as their records say.

use std::{fmt, sync::Arc};

use gregor_state_records::metadata::{
    AccessControlEntryRecord, DelegationTokenRecord, MetadataRecord, UserScramCredentialRecord,
};
use gregor_types::{KString, Uuid};
use gregor_wire::RawTags;
use rpds::RedBlackTreeMapSync;

use crate::{ApplyError, MetadataVersion};

/// Every access control entry, by its id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Acls {
    entries: RedBlackTreeMapSync<Uuid, Arc<AccessControlEntryRecord>>,
}

/// Every SCRAM credential, by mechanism and user.
#[derive(Clone, PartialEq, Default)]
pub struct ScramCredentials {
    credentials: RedBlackTreeMapSync<(i8, KString), Arc<UserScramCredentialRecord>>,
}

/// Every delegation token, by its id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DelegationTokens {
    tokens: RedBlackTreeMapSync<KString, Arc<DelegationTokenRecord>>,
}

impl Acls {
    /// All entries, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<AccessControlEntryRecord>> {
        self.entries.values()
    }

    pub(crate) fn add(&mut self, record: &AccessControlEntryRecord) {
        let entry = AccessControlEntryRecord {
            resource_name: record.resource_name.compact(),
            principal: record.principal.compact(),
            host: record.host.compact(),
            unknown_tagged_fields: RawTags::default(),
            ..record.clone()
        };
        self.entries.insert_mut(record.id, Arc::new(entry));
    }

    pub(crate) fn remove(&mut self, id: Uuid) -> Result<(), ApplyError> {
        if self.entries.remove_mut(&id) { Ok(()) } else { Err(ApplyError::UnknownAcl(id)) }
    }

    pub(crate) fn write(&self, emit: &mut impl FnMut(MetadataRecord)) {
        for entry in self.iter() {
            emit(MetadataRecord::AccessControlEntry(AccessControlEntryRecord::clone(entry)));
        }
    }
}

impl ScramCredentials {
    /// A user's credential for a mechanism: 1 is SCRAM-SHA-256, 2 is SCRAM-SHA-512.
    pub fn get(&self, mechanism: i8, user: &str) -> Option<&Arc<UserScramCredentialRecord>> {
        self.credentials.get(&(mechanism, KString::from(user)))
    }

    /// All credentials, by mechanism and user.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<UserScramCredentialRecord>> {
        self.credentials.values()
    }

    pub(crate) fn put(&mut self, record: &UserScramCredentialRecord) {
        let credential = UserScramCredentialRecord { unknown_tagged_fields: RawTags::default(), ..record.clone() };
        self.credentials.insert_mut((record.mechanism, record.name.compact()), Arc::new(credential));
    }

    pub(crate) fn remove(&mut self, mechanism: i8, user: &KString) {
        self.credentials.remove_mut(&(mechanism, user.clone()));
    }

    pub(crate) fn write(&self, version: MetadataVersion, emit: &mut impl FnMut(MetadataRecord)) {
        for credential in self.iter() {
            let record = MetadataRecord::UserScramCredential(UserScramCredentialRecord::clone(credential));
            if version.record_version(&record).is_some() {
                emit(record);
            }
        }
    }
}

impl fmt::Debug for ScramCredentials {
    /// Users and mechanisms only: keys and salts belong in no log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.credentials.keys()).finish()
    }
}

impl DelegationTokens {
    /// A token by its id.
    pub fn get(&self, id: &str) -> Option<&Arc<DelegationTokenRecord>> {
        self.tokens.get(id)
    }

    /// All tokens, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DelegationTokenRecord>> {
        self.tokens.values()
    }

    pub(crate) fn put(&mut self, record: &DelegationTokenRecord) {
        let token = DelegationTokenRecord {
            owner: record.owner.compact(),
            requester: record.requester.compact(),
            renewers: record.renewers.iter().map(KString::compact).collect(),
            token_id: record.token_id.compact(),
            unknown_tagged_fields: RawTags::default(),
            ..record.clone()
        };
        self.tokens.insert_mut(token.token_id.clone(), Arc::new(token));
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.tokens.remove_mut(id);
    }

    pub(crate) fn write(&self, version: MetadataVersion, emit: &mut impl FnMut(MetadataRecord)) {
        for token in self.iter() {
            let record = MetadataRecord::DelegationToken(DelegationTokenRecord::clone(token));
            if version.record_version(&record).is_some() {
                emit(record);
            }
        }
    }
}
