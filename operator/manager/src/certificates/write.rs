//! Writes Secrets as the plan said, each at the version that the plan saw.

use std::collections::BTreeMap;

use gregor_operator_plan::certificates::{SecretChange, SecretWrite, SecretWrites, ToMake, Trusted};
use gregor_operator_plan::properties::{KEY_STORE, TRUST_STORE};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};

use super::make::{self, Made};
use super::read::{CERTIFICATE, KEY, NEXT_CERTIFICATE, NEXT_KEY, text};
use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;

type Data = BTreeMap<String, ByteString>;

/// The type of an authority's Secret, which says that the keys are a certificate's and its private key's.
const TLS_TYPE: &str = "kubernetes.io/tls";

/// Carries the writes out, in their order.
pub(crate) async fn carry_out(context: &Context, namespace: &str, writes: &SecretWrites) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    for write in &writes.writes {
        one(&api, write).await?;
    }
    Ok(())
}

async fn one(api: &Api<Secret>, write: &SecretWrite) -> Result<(), Error> {
    let doing = || format!("writing Secret {}", write.name);
    let is_new = write.metadata["resourceVersion"].is_null();
    let mut secret = if is_new {
        Secret { type_: Some(type_of(&write.change).to_owned()), ..Secret::default() }
    } else {
        api.get(&write.name).await.map_err(Error::kubernetes(doing()))?
    };
    // The version that the plan saw: what was written meanwhile is a conflict, and the plan looks again.
    secret.metadata = serde_json::from_value(write.metadata.clone()).map_err(Error::shape(doing()))?;
    let signer = match &write.change {
        SecretChange::Node { authority, .. } => {
            Some(api.get(authority).await.map_err(Error::kubernetes(format!("reading Secret {authority}")))?)
        }
        _ => None,
    };
    secret.data = Some(content(&write.change, &secret, signer.as_ref(), &doing())?);
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let outcome = if is_new {
        api.create(&parameters, &secret).await
    } else {
        api.replace(&write.name, &parameters, &secret).await
    };
    outcome.map(drop).map_err(Error::kubernetes(doing()))
}

fn type_of(change: &SecretChange) -> &'static str {
    match change {
        SecretChange::Node { .. } => "Opaque",
        _ => TLS_TYPE,
    }
}

/// What becomes of a Secret's content. A node's certificate is signed by the authority that the plan saw, or not at all.
pub(super) fn content(
    change: &SecretChange,
    before: &Secret,
    signer: Option<&Secret>,
    doing: &str,
) -> Result<Data, Error> {
    let mut data = before.data.clone().unwrap_or_default();
    match change {
        SecretChange::Authority { certificate, trusted } => {
            let made = make::authority(certificate).map_err(Error::certificate(doing))?;
            data.clear();
            data.insert(TRUST_STORE.to_owned(), bytes(format!("{}{}", pems(trusted), made.certificate)));
            put(&mut data, CERTIFICATE, KEY, made);
        }
        SecretChange::NextAuthority(certificate) => {
            let made = make::authority(certificate).map_err(Error::certificate(doing))?;
            let trusted = text(before, TRUST_STORE).map_err(Error::secret(doing))?;
            data.insert(TRUST_STORE.to_owned(), bytes(format!("{}\n{}", trusted.trim_end(), made.certificate)));
            put(&mut data, NEXT_CERTIFICATE, NEXT_KEY, made);
        }
        SecretChange::Promote => {
            for (next, current) in [(NEXT_CERTIFICATE, CERTIFICATE), (NEXT_KEY, KEY)] {
                let value = data.remove(next).ok_or_else(|| Error::secret(doing)(format!("it has no key {next}")))?;
                data.insert(current.to_owned(), value);
            }
        }
        SecretChange::Trust(trusted) => drop(data.insert(TRUST_STORE.to_owned(), bytes(pems(trusted)))),
        SecretChange::Node { certificate, trusted, .. } => {
            let made = sign(certificate, signer).map_err(Error::secret(doing))?;
            data.clear();
            data.insert(TRUST_STORE.to_owned(), bytes(pems(trusted)));
            data.insert(KEY_STORE.to_owned(), bytes(format!("{}{}", made.key, made.certificate)));
        }
    }
    Ok(data)
}

fn sign(certificate: &ToMake, signer: Option<&Secret>) -> Result<Made, String> {
    let signer = signer.ok_or("there is no authority")?;
    if super::authority(signer)?.current.subject != certificate.issuer {
        return Err("there is another authority by now".to_owned());
    }
    make::node(certificate, text(signer, KEY)?).map_err(|error| error.to_string())
}

fn put(data: &mut Data, certificate: &str, key: &str, made: Made) {
    data.insert(certificate.to_owned(), bytes(made.certificate));
    data.insert(key.to_owned(), bytes(made.key));
}

fn pems(trusted: &[Trusted]) -> String {
    trusted.iter().map(|trusted| trusted.pem.as_str()).collect()
}

fn bytes(text: String) -> ByteString {
    ByteString(text.into_bytes())
}
