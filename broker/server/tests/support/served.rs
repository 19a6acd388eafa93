//! A broker without partitions of its own, which has done what an image says as soon as it sees it.

use gregor_server::control::{BrokerState, ControlHandle};

/// Until it is unfenced; false where its control thread ended before.
pub async fn serves(control: &ControlHandle) -> bool {
    let (mut images, mut state) = (control.image_updates(), control.broker_state());
    let applies = async {
        loop {
            let offset = images.borrow_and_update().position.last_offset;
            // There is no metadata at first.
            let is_told = offset.value() < 0 || control.loaded(offset).await.is_ok();
            if !is_told || images.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = applies => false,
        running = state.wait_for(|state| matches!(state, BrokerState::Running(_))) => running.is_ok(),
    }
}
