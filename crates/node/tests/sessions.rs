//! Sessions over a store in a temporary directory, driven by the client half of the codec: what is answered, what is
//! refused and how, and what bad input does.

mod sessions {
    mod access;
    mod bad_input;
    mod lab;
    mod replay;
    mod serve;
    mod uploads;
}
