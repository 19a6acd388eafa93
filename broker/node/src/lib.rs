//! What a broker decides from images, requests and time.
