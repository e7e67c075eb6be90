//! Tidy tables as Parquet: optional columns of doubles and of text, in one row group.

use super::tidy::{Tidy, Value};
use bitsmith_formats::{Error, Result};
use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use std::sync::Arc;

impl Tidy {
    /// As a Parquet file. A column holds numbers if no row has text in it.
    pub fn to_parquet(&self) -> Result<Vec<u8>> {
        self.write().map_err(|e| Error::failed(format!("Parquet: {e}")))
    }

    fn write(&self) -> parquet::errors::Result<Vec<u8>> {
        let columns: Vec<(Vec<&Value>, bool)> = (0..self.columns.len())
            .map(|c| {
                let values: Vec<&Value> = self.rows.iter().map(|row| &row[c]).collect();
                let numbers = !values.iter().any(|v| matches!(v, Value::Text(_)));
                (values, numbers)
            })
            .collect();
        let fields = self.columns.iter().zip(&columns).map(|(name, (_, numbers))| {
            let of = |physical| Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
            let field = match numbers {
                true => of(Physical::DOUBLE),
                false => of(Physical::BYTE_ARRAY).with_converted_type(ConvertedType::UTF8),
            };
            field.build().map(Arc::new)
        });
        let schema = Type::group_type_builder("results").with_fields(fields.collect::<Result<_, _>>()?).build()?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let mut file = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
        let mut group = file.next_row_group()?;
        for (values, numbers) in &columns {
            if *numbers {
                put::<DoubleType>(&mut group, values, |v| if let Value::Number(n) = v { Some(*n) } else { None })?;
            } else {
                put::<ByteArrayType>(&mut group, values, |v| match v {
                    Value::Text(s) => Some(ByteArray::from(s.as_str())),
                    Value::Number(n) => Some(ByteArray::from(n.to_string().as_str())),
                    Value::Absent => None,
                })?;
            }
        }
        group.close()?;
        file.into_inner()
    }
}

/// Writes the next column: its values, and for each row whether it has one.
fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[&Value],
    of: impl Fn(&Value) -> Option<T::T>,
) -> parquet::errors::Result<()> {
    let values: Vec<Option<T::T>> = values.iter().map(|v| of(v)).collect();
    let present: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    let mut column = group.next_column()?.ok_or_else(|| parquet::errors::ParquetError::General("no such column".into()))?;
    column.typed::<T>().write_batch(&values, Some(&present), None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text = |s: &str| Value::Text(s.into());
        let table = Tidy {
            columns: ["model", "kld_mean.code", "note"].map(String::from).to_vec(),
            rows: vec![
                vec![text("größer, \"a\""), Value::Number(0.027_531), Value::Absent],
                vec![text("b"), Value::Absent, Value::Number(2.0)],
            ],
        };
        let file = tempfile::Builder::new().suffix(".parquet").tempfile().unwrap();
        std::fs::write(file.path(), table.to_parquet().unwrap()).unwrap();
        let rows = bitsmith_datasets::table::read(file.path()).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["model"], "größer, \"a\"");
        assert_eq!((&rows[0]["kld_mean.code"], &rows[1]["note"]), (&0.027_531.into(), &2.0.into()));
        assert!(rows[0]["note"].is_null() && rows[1]["kld_mean.code"].is_null());
    }
}
