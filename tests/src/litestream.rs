//! `litestream restore`, the independent judge of a bucket.
